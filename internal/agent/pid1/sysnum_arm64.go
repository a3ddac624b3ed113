package pid1

import "syscall"

const sysFinitModule = syscall.SYS_FINIT_MODULE
