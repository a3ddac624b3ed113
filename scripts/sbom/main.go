// Sbom writes the bill of materials of the programs of a release to standard
// output. scripts/release runs it.
package main

import (
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/lpmos/lpmos/internal/sbom"
)

func main() {
	version := flag.String("version", "devel", "of the release")
	at := flag.String("at", "", "when it was committed (RFC 3339)")
	flag.Parse()
	r := sbom.Release{Version: *version, Files: flag.Args()}
	var err error
	if *at != "" {
		r.At, err = time.Parse(time.RFC3339, *at)
	}
	if err == nil {
		err = sbom.Write(os.Stdout, r)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "sbom:", err)
		os.Exit(1)
	}
}
