package pid1

import "syscall"

const sysSetns = syscall.SYS_SETNS
