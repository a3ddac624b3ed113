// Package version says which build this is.
package version

import "runtime/debug"

// Value is set by the linker (-X …/internal/version.Value=…).
var Value string

// String is the version, or what the toolchain knows of the build.
func String() string {
	if Value != "" {
		return Value
	}
	if b, ok := debug.ReadBuildInfo(); ok && b.Main.Version != "" && b.Main.Version != "(devel)" {
		return b.Main.Version
	}
	return "devel"
}
