package pid1

// sysFinitModule is finit_module(2), which package syscall does not name on
// this architecture.
const sysFinitModule = 313
