package install

const sysSyncfs = 267
