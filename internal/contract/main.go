package contract

import (
	"flag"
	"fmt"
	"os"
	"testing"
)

// Main runs a package's tests and fails when they pass without having shown
// every documented answer of spec. Call it from TestMain:
//
//	func TestMain(m *testing.M) { os.Exit(contract.Main(m, api.Agent)) }
//
// A run of selected tests (-run, -skip, -list) or of none but benchmarks is not
// held to that.
func Main(m *testing.M, spec []byte) int {
	code := m.Run()
	if code != 0 || selected() {
		return code
	}
	missing := Missing(spec)
	for _, a := range missing {
		fmt.Fprintf(os.Stderr, "contract: no test has seen %s\n", a)
	}
	if len(missing) > 0 {
		return 1
	}
	return 0
}

func selected() bool {
	for _, name := range []string{"test.run", "test.skip", "test.list", "test.fuzz"} {
		if f := flag.Lookup(name); f != nil && f.Value.String() != "" {
			return true
		}
	}
	return false
}
