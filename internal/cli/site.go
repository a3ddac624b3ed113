package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/apiclient"
	"github.com/lpmos/lpmos/internal/bootimage"
	"github.com/lpmos/lpmos/internal/osimage"
	"github.com/lpmos/lpmos/internal/version"
)

func cacheDir() string {
	if d, err := os.UserCacheDir(); err == nil {
		return filepath.Join(d, "lpmos")
	}
	return ".lpmos-cache"
}

func (a *app) steps(what string) func(string) {
	return func(step string) { fmt.Fprintf(a.err, "%s: %s\n", what, step) }
}

func (a *app) imageBuild() *cobra.Command {
	var out, cache string
	var refresh, register bool
	cmd := &cobra.Command{
		Use: "build debian-12|debian-13|tiny", Short: "Build an image from Debian's packages",
		Long: `Build makes a root filesystem from Debian's own packages, packs it in verified
chunks, uploads it to the control plane and registers it in the catalogue.
It needs root, for the packages' own installation in a directory.`,
		Args: exactly(1),
	}
	f := cmd.Flags()
	f.StringVar(&out, "out", "", "directory for manifest and pack (default: in --cache-dir)")
	f.StringVar(&cache, "cache-dir", cacheDir(), "where packages and finished builds are kept")
	f.BoolVar(&refresh, "refresh", false, "build anew even if the same build is cached")
	f.BoolVar(&register, "register", true, "upload and register the image at --server")
	cmd.RunE = a.with(func(ctx context.Context, c *apiclient.Client, args []string) error {
		if out == "" {
			out = filepath.Join(cache, "images")
		}
		img, err := osimage.Build(ctx, osimage.Config{Name: args[0], OutDir: out, CacheDir: cache, Refresh: refresh}, quietLog, func(step string, _ int) { a.steps(args[0])(step) })
		if err != nil {
			return err
		}
		if register {
			if err := uploadImage(ctx, c, out, img, a.steps(args[0])); err != nil {
				return err
			}
		}
		return a.print(img, func(w *tabwriter.Writer, _ bool) { writeImages(w, []lpmos.Image{img}, true) })
	})
	return cmd
}

func uploadImage(ctx context.Context, c *apiclient.Client, dir string, img lpmos.Image, step func(string)) error {
	digest, err := lpmos.TrimDigest(img.Digest)
	if err != nil {
		return err
	}
	m, err := readManifest(filepath.Join(dir, "blobs", digest))
	if err != nil {
		return err
	}
	for _, b := range append(m.Blobs(), lpmos.Blob{SHA256: digest}) {
		step("uploading " + b.SHA256[:12])
		if err := c.UploadBlob(ctx, b.SHA256, filepath.Join(dir, "blobs", b.SHA256), nil); err != nil {
			return fmt.Errorf("upload %s: %w", img.Name(), err)
		}
	}
	return c.PutImage(ctx, img)
}

func readManifest(name string) (m lpmos.ImageManifest, err error) {
	f, err := os.Open(name)
	if err != nil {
		return m, fmt.Errorf("open manifest: %w", err)
	}
	err = lpmos.DecodeJSON(f, lpmos.MaxManifestBytes, &m)
	if err = errors.Join(err, f.Close()); err != nil {
		return m, fmt.Errorf("read manifest: %w", err)
	}
	return m, nil
}

func (a *app) bootImageCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "bootimage", Short: "Build and publish what machines boot before they have a system"}
	var agent, out, cache, suite, flavour string
	build := &cobra.Command{
		Use: "build", Short: "Build kernel, initramfs and network boot files from Debian's packages",
		Long: `Build assembles kernel, modules, tools, boot loader parts and the agent, byte for
byte the same for the same packages and agent, and prints what each part weighs.`,
		Args: exactly(0),
		RunE: a.with(func(ctx context.Context, _ *apiclient.Client, _ []string) error {
			if out == "" {
				out = filepath.Join(cache, "bootimage")
			}
			b, report, err := bootimage.Build(ctx, bootimage.Config{OutDir: out, AgentPath: agent, Suite: suite, Flavour: flavour, CacheDir: cache, Version: version.String()}, quietLog, a.steps("boot image"))
			if err != nil {
				return err
			}
			return a.print(b, func(*tabwriter.Writer, bool) { fmt.Fprint(a.out, report.String()) })
		}),
	}
	f := build.Flags()
	f.StringVar(&agent, "agent", "bin/agent", "the agent, a static binary")
	f.StringVar(&out, "out", "", "directory of the result (default: in --cache-dir)")
	f.StringVar(&cache, "cache-dir", cacheDir(), "where packages are kept")
	f.StringVar(&suite, "suite", "bookworm", "Debian release the kernel and tools come from")
	f.StringVar(&flavour, "flavour", "generic", "generic: every common NIC and disk; cloud: virtual machines only")
	var dir string
	publish := &cobra.Command{
		Use: "publish", Short: "Upload a boot image and make regions serve it", Args: exactly(0),
		RunE: a.with(func(ctx context.Context, c *apiclient.Client, _ []string) error {
			if dir == "" {
				dir = filepath.Join(cacheDir(), "bootimage")
			}
			b, err := readBootImage(dir)
			if err != nil {
				return err
			}
			for _, blob := range bootBlobs(b) {
				if err := c.UploadBlob(ctx, blob.SHA256, filepath.Join(dir, "blobs", blob.SHA256), nil); err != nil {
					return fmt.Errorf("upload boot image: %w", err)
				}
			}
			if err := c.PutBootImage(ctx, b); err != nil {
				return err
			}
			return a.say(b, "boot image "+plain(b.Version)+" published")
		}),
	}
	publish.Flags().StringVar(&dir, "dir", "", "directory of the build (default: where `bootimage build` puts it)")
	cmd.AddCommand(build, publish)
	return cmd
}

func bootBlobs(b lpmos.BootImage) []lpmos.Blob {
	out := []lpmos.Blob{b.Kernel, b.Initrd}
	for _, f := range b.Files {
		out = append(out, f)
	}
	return out
}

func readBootImage(dir string) (lpmos.BootImage, error) {
	f, err := os.Open(filepath.Join(dir, "bootimage.json"))
	if err != nil {
		return lpmos.BootImage{}, fmt.Errorf("read boot image (run `lpmos bootimage build` first): %w", err)
	}
	defer f.Close()
	var b lpmos.BootImage
	if err := lpmos.DecodeJSON(f, 1<<20, &b); err != nil {
		return b, fmt.Errorf("read boot image: %w", err)
	}
	return b, nil
}
