package pki

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
)

// ReadCertificate reads the first certificate of a file that holds PEM, or of a
// region's identity, which has it in a field of JSON.
func ReadCertificate(path string) (*x509.Certificate, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var identity struct {
		Certificate string `json:"certificate"`
	}
	if json.Unmarshal(b, &identity) == nil {
		b = []byte(identity.Certificate)
	}
	for {
		block, rest := pem.Decode(b)
		if block == nil {
			return nil, fmt.Errorf("read %s: %w", path, errors.New("there is no certificate in it"))
		}
		if block.Type == "CERTIFICATE" {
			return x509.ParseCertificate(block.Bytes)
		}
		b = rest
	}
}
