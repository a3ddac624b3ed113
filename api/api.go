// Package api holds the contracts that outsiders may rely on, as files. Tests
// hold code and contract together (internal/contract).
package api

import _ "embed"

// OpenAPI describes the control plane's REST API (OpenAPI 3.1).
//
//go:embed openapi.yaml
var OpenAPI []byte
