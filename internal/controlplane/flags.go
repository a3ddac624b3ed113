package controlplane

import "github.com/spf13/pflag"

// Flags registers what `control-plane` and `lpmos up` have in common.
func (c *Config) Flags(f *pflag.FlagSet) {
	f.StringVar(&c.ListenAddr, "listen-addr", founding, "web interface and API: plain HTTP on loopback, where the default is too, and TLS anywhere else")
	f.BoolVar(&c.TLS, "tls", false, "TLS on loopback and at :8080, too")
	f.StringVar(&c.TLSCert, "tls-cert", "", "PEM file of the certificate, read again when it changes (default: one that is made, by the site's own authority)")
	f.StringVar(&c.TLSKey, "tls-key", "", "PEM file of its key")
	f.BoolVar(&c.InsecureHTTP, "insecure-http", false, "serve plain HTTP beyond loopback: anyone on the path can approve")
	f.StringVar(&c.CA, "site-ca", "", "PEM file of the site's authority and its key, shared by replicas (default: made in --data-dir)")
	f.StringVar(&c.SiteName, "site-name", "", "shown in the pages")
}
