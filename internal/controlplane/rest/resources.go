package rest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/blobs"
)

func (a *API) listRegions(c *gin.Context) {
	a.conditional(c, struct {
		Regions []lpmos.Region `json:"regions"`
	}{list(a.read.Regions())})
}

func (a *API) getRegion(c *gin.Context) {
	id := c.Param("id")
	if !lpmos.ValidRegionID(id) {
		a.fail(c, &lpmos.InvalidError{Field: "region_id", Problem: "is not a region id", Value: id})
		return
	}
	r, ok := a.read.Region(id)
	if !ok {
		a.fail(c, fmt.Errorf("region %s: %w", id, lpmos.ErrNotFound))
		return
	}
	a.conditional(c, r)
}

func (a *API) listImages(c *gin.Context) {
	a.conditional(c, struct {
		Images []lpmos.Image `json:"images"`
	}{list(a.read.Images())})
}

func (a *API) getImage(c *gin.Context) {
	i, rev, ok := a.read.ImageRev(c.Param("os"), c.Param("version"), c.Param("arch"))
	if !ok {
		a.fail(c, fmt.Errorf("image %s/%s/%s: %w", lpmos.Shorten(c.Param("os"), 64), lpmos.Shorten(c.Param("version"), 64), lpmos.Shorten(c.Param("arch"), 64), lpmos.ErrNotFound))
		return
	}
	b, err := json.Marshal(i)
	if err != nil {
		a.fail(c, err)
		return
	}
	a.tagged(c, revTag(rev), b)
}

// putImage registers an image whose blobs were stored before. The manifest
// decides what the entry says, so that the two cannot differ.
func (a *API) putImage(c *gin.Context) {
	rev, ok := a.ifMatch(c)
	if !ok {
		return
	}
	var i lpmos.Image
	if !a.decode(c, &i) {
		return
	}
	if i.OS != c.Param("os") || i.Version != c.Param("version") || i.Arch != c.Param("arch") {
		a.fail(c, &lpmos.InvalidError{Field: "os", Problem: "version and arch are not those of the path"})
		return
	}
	digest, err := lpmos.TrimDigest(i.Digest)
	if err != nil {
		a.fail(c, err)
		return
	}
	f, size, err := a.blobs.Open(c.Request.Context(), digest)
	if err != nil {
		a.fail(c, &lpmos.InvalidError{Field: "digest", Problem: "names a manifest that was not uploaded (PUT /api/v1/blobs/{sha256} first)", Value: i.Digest})
		return
	}
	defer f.Close()
	var m lpmos.ImageManifest
	if size > lpmos.MaxManifestBytes {
		a.fail(c, &lpmos.InvalidError{Field: "digest", Problem: "names a blob too large for a manifest", Value: i.Digest})
		return
	}
	if err := lpmos.DecodeJSON(f, lpmos.MaxManifestBytes, &m); err != nil {
		a.fail(c, fmt.Errorf("the blob is not a manifest: %w", err))
		return
	}
	if err := m.Validate(); err != nil {
		a.fail(c, err)
		return
	}
	switch {
	case m.OS != i.OS || m.Version != i.Version || m.Arch != i.Arch:
		a.fail(c, &lpmos.InvalidError{Field: "digest", Problem: "names the manifest of " + m.OS + "/" + m.Version + "/" + m.Arch})
		return
	}
	i.Format, i.SizeBytes, i.UsedBytes, i.StoredBytes, i.CloudInit, i.Installer = m.Format, m.RootBytes(), m.UsedBytes, 0, m.CloudInit, m.Installer
	for _, b := range m.Blobs() {
		if !a.blobs.Has(b.SHA256) {
			a.fail(c, &lpmos.InvalidError{Field: "digest", Problem: "names a manifest whose pack, kernel or initramfs was not uploaded", Value: b.SHA256})
			return
		}
		i.StoredBytes += b.Bytes
	}
	if len(i.BootModes) == 0 {
		i.BootModes = []string{"bios", "uefi"}
	}
	if i.CreatedAt.IsZero() {
		i.CreatedAt = time.Now().UTC()
	}
	a.act.SignImage(&i)
	if rev, err = a.store.PutImageIf(c.Request.Context(), i, rev); err != nil {
		a.fail(c, err)
		return
	}
	c.Header("ETag", revTag(rev))
	c.JSON(http.StatusOK, i)
}

func (a *API) deleteImage(c *gin.Context) {
	rev, ok := a.ifMatch(c)
	if !ok {
		return
	}
	if err := a.act.DeleteImage(c.Request.Context(), c.Param("os"), c.Param("version"), c.Param("arch"), rev, who(c)); err != nil {
		a.fail(c, err)
		return
	}
	c.Status(http.StatusNoContent)
}

func (a *API) putBootImage(c *gin.Context) {
	var b lpmos.BootImage
	if !a.decode(c, &b) {
		return
	}
	for arg := range strings.FieldsSeq(b.KernelArgs) {
		if !lpmos.PlainBootWord(arg) {
			a.fail(c, &lpmos.InvalidError{Field: "kernel_args", Problem: "holds what means something to a boot loader: letters, digits and _.,:/=@%+- do not", Value: arg})
			return
		}
	}
	parts := map[string]lpmos.Blob{"kernel": b.Kernel, "initrd": b.Initrd}
	for name, blob := range b.Files {
		parts["files."+name] = blob
	}
	for field, blob := range parts {
		if !a.blobs.Has(blob.SHA256) {
			a.fail(c, &lpmos.InvalidError{Field: field, Problem: "names a blob that was not uploaded (PUT /api/v1/blobs/{sha256} first)", Value: blob.SHA256})
			return
		}
	}
	if err := a.boot(c.Request.Context(), b); err != nil {
		a.fail(c, err)
		return
	}
	c.JSON(http.StatusOK, b)
}

func (a *API) getBlob(c *gin.Context) {
	f, _, err := a.blobs.Open(c.Request.Context(), c.Param("sha256"))
	if err != nil {
		a.fail(c, err)
		return
	}
	defer f.Close()
	c.Header("Content-Type", "application/octet-stream")
	c.Header("ETag", `"`+c.Param("sha256")+`"`)
	c.Header("Cache-Control", "public, max-age=31536000, immutable")
	http.ServeContent(c.Writer, c.Request, "", time.Time{}, f)
}

func (a *API) putBlob(c *gin.Context) {
	// An upload takes as long as it takes; the server's deadlines are for
	// requests that should be short.
	rc := http.NewResponseController(c.Writer)
	if err := rc.SetReadDeadline(time.Time{}); err != nil {
		a.log.Debug("lift read deadline", "err", err)
	}
	if c.Request.ContentLength > blobs.MaxBytes {
		a.fail(c, lpmos.ErrTooLarge)
		return
	}
	b, err := a.blobs.Put(c.Request.Context(), c.Param("sha256"), c.Request.Body)
	if err != nil {
		a.fail(c, err)
		return
	}
	c.JSON(http.StatusOK, b)
}
