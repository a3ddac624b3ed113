package install

const (
	sysSyncfs        = 267
	sysKexecFileLoad = 294
)
