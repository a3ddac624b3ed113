package install

const sysSyncfs = 306
