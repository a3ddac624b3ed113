package rest

import (
	"context"
	"crypto/x509"
	"net/http"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/lpmos/lpmos/internal/controlplane/api"
)

// Enroller gives regions their certificates.
type Enroller interface {
	// Enroll makes a token, which is good for ttl (0: as usual); host is how the
	// control plane was reached.
	Enroll(ctx context.Context, region string, ttl time.Duration, host, by string) (api.EnrollToken, error)
	// Certificate wants a token in req, or the region's certificate as peer.
	Certificate(ctx context.Context, region string, req api.CertificateRequest, peer *x509.Certificate, host string) (api.RegionCertificate, error)
	Rotate(ctx context.Context, region, by string) error
	Revoke(ctx context.Context, region, by string) error
}

// Enroll serves the enrollment of regions. It must be called before Handler.
func (a *API) Enroll(e Enroller) { a.enroll = e }

func (a *API) enrollRegion(c *gin.Context) {
	var in struct {
		TTLSeconds int `json:"ttl_seconds"`
	}
	if c.Request.ContentLength != 0 && !a.decode(c, &in) {
		return
	}
	t, err := a.enroll.Enroll(c.Request.Context(), c.Param("id"), time.Duration(in.TTLSeconds)*time.Second, c.Request.Host, who(c))
	if err != nil {
		a.fail(c, err)
		return
	}
	c.Header("Cache-Control", "no-store")
	c.JSON(http.StatusCreated, t)
}

// regionCertificate is open to everybody: the token in the body, or the
// certificate of the connection, is the credential.
func (a *API) regionCertificate(c *gin.Context) {
	var in api.CertificateRequest
	if !a.decode(c, &in) {
		return
	}
	var peer *x509.Certificate
	if t := c.Request.TLS; t != nil && len(t.VerifiedChains) > 0 {
		peer = t.PeerCertificates[0]
	}
	cert, err := a.enroll.Certificate(c.Request.Context(), c.Param("id"), in, peer, c.Request.Host)
	if err != nil {
		a.fail(c, err)
		return
	}
	c.Header("Cache-Control", "no-store")
	c.JSON(http.StatusOK, cert)
}

func (a *API) rotateRegion(c *gin.Context) {
	if err := a.enroll.Rotate(c.Request.Context(), c.Param("id"), who(c)); err != nil {
		a.fail(c, err)
		return
	}
	c.Status(http.StatusAccepted)
}

func (a *API) revokeRegion(c *gin.Context) {
	if err := a.enroll.Revoke(c.Request.Context(), c.Param("id"), who(c)); err != nil {
		a.fail(c, err)
		return
	}
	c.Status(http.StatusNoContent)
}
