// Package vm_test provisions real machines: SeaBIOS and OVMF in QEMU, on a
// private network, against the services as they ship. Nothing is simulated but
// the hardware.
//
// The tests are of the tier "vm": without QEMU, root or the other tools they
// are skipped, and fail where LPMOS_REQUIRE names the tier. LPMOS_VM=all adds
// those that are not part of every commit. LPMOS_CACHE_DIR keeps packages and
// finished images from run to run. Serial logs and the services' logs are in
// the artifact directory (go test -artifacts).
package vm_test
