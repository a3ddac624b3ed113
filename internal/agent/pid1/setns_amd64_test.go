package pid1

const sysSetns = 308
