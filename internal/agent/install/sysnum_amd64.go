package install

const (
	sysSyncfs        = 306
	sysKexecFileLoad = 320
)
