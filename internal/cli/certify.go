package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/apiclient"
	"github.com/lpmos/lpmos/internal/lab"
)

// trial is a kind of firmware that an image is tried with, by the name that
// badges have.
type trial struct {
	name    string
	install lab.Firmware
	run     lab.Firmware // that the installed system is started by
}

// trials are all. Our boot files for the network are not signed, so with Secure
// Boot a machine is installed without it and then switched over.
var trials = []trial{
	{"bios", lab.BIOS, lab.BIOS}, {"uefi", lab.UEFI, lab.UEFI}, {"uefi-secure-boot", lab.UEFI, lab.UEFISecureBoot},
}

func trialsOf(names []string) ([]trial, error) {
	var out []trial
	for _, name := range names {
		i := slices.IndexFunc(trials, func(t trial) bool { return t.name == name })
		if i < 0 {
			return nil, usageError{fmt.Errorf("--firmware is none of bios, uefi, uefi-secure-boot (got %q)", name)}
		}
		out = append(out, trials[i])
	}
	return out, nil
}

func (a *app) imageCertify() *cobra.Command {
	cfg := labConfig{auto: true, listen: "127.0.0.1:0"}
	var names []string
	cmd := &cobra.Command{
		Use: "certify IMAGE", Short: "Try an image on virtual machines and note how it boots", Args: exactly(1), ValidArgsFunction: a.completeImages,
		Long: `Certify installs an image of the catalogue on virtual machines, one for each kind of
firmware, by the whole path of a real one (as lpmos lab up does, on a network of its
own), waits until the installed system has called home, and notes the results on the
image: lists, pages and the form for new tasks show them. That an image does not boot
is a result and no error; a lab that is stopped or fails is an error and no result.

It needs root, QEMU and Debian's packages on the computer it runs on.`,
		Example: `  lpmos image certify debian/12/amd64
  lpmos image certify rocky/9 --firmware uefi,uefi-secure-boot`,
	}
	f := cmd.Flags()
	f.StringSliceVar(&names, "firmware", nil, "bios, uefi, uefi-secure-boot (default: what the image says it boots with)")
	f.StringVar(&cfg.agent, "agent", "bin/agent", "the agent, a static binary")
	f.StringVar(&cfg.cache, "cache-dir", cacheDir(), "where packages and finished builds are kept")
	f.StringVar(&cfg.keep, "keep", "", "directory for disks and serial logs, kept at the end")
	f.DurationVar(&cfg.verifying, "limit", 10*time.Minute, "how long an installed system may take to call home")
	f.DurationVar(&cfg.timeout, "timeout", 60*time.Minute, "give up after")
	f.BoolVarP(&cfg.verbose, "verbose", "v", false, "show the services' log")
	cmd.RunE = a.with(func(ctx context.Context, c *apiclient.Client, args []string) error {
		img, err := findImage(ctx, c, args[0])
		if err != nil {
			return err
		}
		if len(names) == 0 {
			names = slices.Clone(img.BootModes)
			if img.Preflight != nil && img.Preflight.SecureBoot {
				names = append(names, "uefi-secure-boot")
			}
		}
		if len(names) == 0 {
			return usageError{fmt.Errorf("the image %s says of no firmware that it boots with it: name what to try with --firmware", img.Name())}
		}
		if cfg.trials, err = trialsOf(names); err != nil {
			return err
		}
		cfg.os, cfg.machines, cfg.disk = img.Name(), len(cfg.trials), max(4, img.DiskBytes()/1_000_000_000+2)
		cfg.image = func(ctx context.Context, dir string) (lpmos.Image, error) {
			return img, downloadImage(ctx, c, dir, img)
		}
		var badges []lpmos.Badge
		var untold error
		cfg.ended = func(machines []*labMachine) { badges, untold = results(machines, img.Digest) }
		failed := cmp.Or(a.runLab(ctx, cfg), untold)
		if len(badges) == 0 {
			return failed
		}
		if img, err = addBadges(ctx, c, img, badges); err == nil {
			err = a.print(img, func(w *tabwriter.Writer, _ bool) { fmt.Fprint(w, describeImage(img).text(terminal{})) })
		}
		return errors.Join(failed, err)
	})
	return cmd
}

// downloadImage brings the blobs of an image to dir, as a build leaves them.
func downloadImage(ctx context.Context, c *apiclient.Client, dir string, img lpmos.Image) error {
	digest, err := lpmos.TrimDigest(img.Digest)
	if err != nil {
		return err
	}
	blobs := filepath.Join(dir, "blobs")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return fmt.Errorf("download %s: %w", img.Name(), err)
	}
	if err := c.DownloadBlob(ctx, digest, filepath.Join(blobs, digest)); err != nil {
		return fmt.Errorf("download %s: %w", img.Name(), err)
	}
	m, err := readManifest(filepath.Join(blobs, digest))
	if err != nil {
		return err
	}
	for _, b := range m.Blobs() {
		if err := c.DownloadBlob(ctx, b.SHA256, filepath.Join(blobs, b.SHA256)); err != nil {
			return fmt.Errorf("download %s: %w", img.Name(), err)
		}
	}
	return nil
}

// results are what the machines' ends say about the image. One that was stopped,
// or whose lab failed, says nothing: what is known of its firmware stays.
func results(machines []*labMachine, digest string) (badges []lpmos.Badge, err error) {
	for _, m := range machines {
		if m.ended.Status != lpmos.Completed && m.ended.Status != lpmos.Failed {
			err = errors.Join(err, fmt.Errorf("nothing is noted for %s: the task of %s was not carried through", m.trial.name, m.name))
			continue
		}
		badges = append(badges, m.badge(digest))
	}
	return badges, err
}

// badge is what the end of a machine's task says about the image.
func (m *labMachine) badge(digest string) lpmos.Badge {
	b := lpmos.Badge{Firmware: m.trial.name, Digest: digest, At: m.marks["ended"].UTC().Truncate(time.Second)}
	t := m.ended
	secure := t.Receipt != nil && t.Receipt.SecureBoot != nil && *t.Receipt.SecureBoot
	switch {
	case t.Status == lpmos.Completed && m.trial.run == lab.UEFISecureBoot && !secure:
		b.Text = "it started without Secure Boot"
	case t.Status == lpmos.Completed:
		b.Passed = true
		b.Text = fmt.Sprintf("called home %s after power-on", m.marks["ended"].Sub(m.marks["power on"]).Round(time.Second))
	case t.Error != nil:
		b.Text = strings.TrimSuffix(t.Error.Cause, ".")
	}
	if !b.Passed && m.said != "" {
		b.Text += "; its console says: " + m.said
	}
	b.Text = lpmos.Shorten(b.Text, 300)
	return b
}

// addBadges notes results on the newest entry of an image, in place of older
// ones for the same firmware.
func addBadges(ctx context.Context, c *apiclient.Client, img lpmos.Image, badges []lpmos.Badge) (lpmos.Image, error) {
	for {
		now, etag, err := c.Image(ctx, img.OS, img.Version, img.Arch)
		if err != nil {
			return img, err
		}
		if now.Digest != img.Digest {
			return img, &lpmos.ConflictError{Problem: "the image " + img.Name() + " was registered anew meanwhile: certify it again"}
		}
		now.Badges = append(slices.DeleteFunc(now.Badges, func(b lpmos.Badge) bool {
			return slices.ContainsFunc(badges, func(n lpmos.Badge) bool { return n.Firmware == b.Firmware })
		}), badges...)
		err = c.PutImageIf(ctx, now, etag)
		if !errors.Is(err, lpmos.ErrChanged) {
			return now, err
		}
	}
}
