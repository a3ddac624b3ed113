// Command lpmos is the operator's tool and the single-site server.
package main

import (
	"context"
	"os"

	"github.com/lpmos/lpmos/internal/cli"
)

func main() {
	os.Exit(cli.Main(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
}
