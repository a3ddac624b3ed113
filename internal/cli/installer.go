package cli

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/apiclient"
)

// installerFlags are the flags of image installer as they were given.
type installerFlags struct {
	os, version, arch, title, cache string
	modes                           []string
	i                               lpmos.ImageInstaller
}

func (a *app) imageInstaller() *cobra.Command {
	var o installerFlags
	cmd := &cobra.Command{
		Use: "installer KERNEL INITRD", Short: "Register a distribution's own installer",
		Long: `Installer registers kernel and initramfs of a distribution's network installer as
something that can be installed, beside images. A machine is reported, planned and
approved as for an image; then its agent starts the installer with a file of answers
that stands in the plan, holds it to the approved disk, and lets the installed system
call home.

--answers says what the installer reads: preseed (Debian), kickstart (Rocky,
AlmaLinux, Fedora), autoinstall (Ubuntu). --repository is where it takes packages
from. What else it is to be told goes into a template of that kind (lpmos template
put --kind preseed) and into profiles.`,
		Example: `  lpmos image installer linux initrd.gz --os debian --os-version 12-installer \
        --answers preseed --repository http://mirror.example/debian`,
		Args: exactly(2),
	}
	f := cmd.Flags()
	f.StringVar(&o.os, "os", "", "operating system, as tasks will name it: debian")
	f.StringVar(&o.version, "os-version", "", "its version: 12-installer")
	f.StringVar(&o.arch, "arch", "amd64", "architecture: amd64 or arm64")
	f.StringVar(&o.title, "title", "", "for people; default: made of the other flags")
	f.StringVar(&o.i.Answers, "answers", "", "preseed, kickstart or autoinstall")
	f.StringVar(&o.i.Repository, "repository", "", "address of the packages: http://mirror.example/debian")
	f.StringVar(&o.i.KernelArgs, "kernel-args", "", "further arguments of the installer's kernel")
	f.StringSliceVar(&o.modes, "boot-modes", []string{"bios", "uefi"}, "firmware it installs for")
	f.StringVar(&o.cache, "cache-dir", cacheDir(), "where the files are kept until they are uploaded")
	cmd.RunE = a.with(func(ctx context.Context, c *apiclient.Client, args []string) error {
		img, err := o.make(args[0], args[1])
		if err != nil {
			return err
		}
		if err := uploadImage(ctx, c, filepath.Join(o.cache, "images"), img, a.steps(img.OS+"/"+img.Version)); err != nil {
			return err
		}
		if img, err = findImage(ctx, c, img.Name()); err != nil {
			return err
		}
		return a.print(img, func(w *tabwriter.Writer, _ bool) { fmt.Fprint(w, describeImage(img).text(terminal{})) })
	})
	return cmd
}

// make puts the blobs and the manifest into the cache and gives the entry.
func (o *installerFlags) make(kernel, initrd string) (img lpmos.Image, err error) {
	for _, n := range []struct{ field, v string }{{"os", o.os}, {"os-version", o.version}} {
		if !lpmos.ValidName(n.v) {
			return img, &lpmos.InvalidError{Field: n.field, Problem: "is not a name: small letters, digits, and . _ - inside", Value: n.v}
		}
	}
	blobs := filepath.Join(o.cache, "images", "blobs")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return img, fmt.Errorf("keep the installer: %w", err)
	}
	if o.i.Kernel, err = keepBlob(blobs, kernel); err != nil {
		return img, err
	}
	if o.i.Initrd, err = keepBlob(blobs, initrd); err != nil {
		return img, err
	}
	m := lpmos.ImageManifest{Format: lpmos.FormatInstaller, OS: o.os, Version: o.version, Arch: o.arch, Installer: &o.i}
	if err := m.Validate(); err != nil {
		return img, err
	}
	text, err := json.Marshal(m)
	if err != nil {
		return img, fmt.Errorf("encode manifest: %w", err)
	}
	img = lpmos.Image{OS: o.os, Version: o.version, Arch: o.arch, Digest: lpmos.DigestBytes(text), Title: o.title, BootModes: o.modes, CreatedAt: time.Now().UTC().Truncate(time.Second)}
	if img.Title == "" {
		img.Title = o.os + " " + o.version + " (installer)"
	}
	return img, os.WriteFile(filepath.Join(blobs, strings.TrimPrefix(img.Digest, "sha256:")), text, 0o644)
}

// keepBlob copies a file into a directory under its digest.
func keepBlob(dir, name string) (b lpmos.Blob, err error) {
	src, err := os.Open(name)
	if err != nil {
		return b, err
	}
	defer src.Close()
	tmp, err := os.CreateTemp(dir, "keep-")
	if err != nil {
		return b, fmt.Errorf("keep %s: %w", filepath.Base(name), err)
	}
	defer os.Remove(tmp.Name())
	sum := sha256.New()
	b.Bytes, err = io.Copy(io.MultiWriter(tmp, sum), io.LimitReader(src, lpmos.MaxInstallerBytes+1))
	if err = errors.Join(err, tmp.Close()); err != nil {
		return b, fmt.Errorf("keep %s: %w", filepath.Base(name), err)
	}
	b.SHA256 = hex.EncodeToString(sum.Sum(nil))
	return b, os.Rename(tmp.Name(), filepath.Join(dir, b.SHA256))
}
