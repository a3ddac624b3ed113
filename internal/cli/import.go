package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/apiclient"
	"github.com/lpmos/lpmos/internal/imageimport"
)

// importFlags are the flags of image import as they were given.
type importFlags struct {
	known, sha256, sha512, out, cache string
	networks                          []string
	http, register                    bool
	maxSize, maxUnpacked, maxRatio    int64
	timeout                           time.Duration
	r                                 imageimport.Request
}

func (a *app) imageImport() *cobra.Command {
	var o importFlags
	cmd := &cobra.Command{
		Use: "import FILE|URL", Short: "Import an image: qcow2, raw or tar, from a file or an address",
		Long: `Import fetches an image, verifies it, looks inside without running anything of it,
packs it once in verified chunks, uploads it and registers it in the catalogue.

--format says what it is: qcow2 or raw is a whole disk with its own boot loader,
tar a root filesystem for declared layouts. --compression says how the file itself
is packed. Neither is guessed: content of another kind is refused.

What must be right is told by --sha256, --sha512, or a list of checksums
(--checksums), which may be signed (--signature and --keyring). --known takes
address, format and checksums of an official artefact from the built-in list (lpmos
image catalogue).

Only https to public addresses is fetched, through redirects too; --allow-network
names the network of a local mirror, --allow-http allows http. A transfer that
breaks goes on where it ended, also in the next call.`,
		Example: `  lpmos image import --known debian/12
  lpmos image import ./noble.img --os ubuntu --os-version 24.04 --format qcow2 \
        --checksums ./SHA256SUMS --signature ./SHA256SUMS.gpg --keyring ./ubuntu.gpg
  lpmos image import http://mirror.example/rocky9.raw.xz --allow-http --allow-network 10.0.0.0/8 \
        --os rocky --os-version 9 --format raw --compression xz --sha256 2c26…`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 || len(args) == 0 && o.known == "" {
				return usageError{errors.New("give one FILE or URL, or --known")}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.r.Want.OS, "os", "", "operating system, as tasks will name it: ubuntu")
	f.StringVar(&o.r.Want.Version, "os-version", "", "its version: 24.04")
	f.StringVar(&o.r.Want.Arch, "arch", "amd64", "architecture: amd64 or arm64")
	f.StringVar(&o.r.Title, "title", "", "for people; default: what the image calls itself")
	f.StringVar(&o.r.Format, "format", "", "qcow2, raw or tar")
	f.StringVar(&o.r.Compression, "compression", "none", "of the file itself: none, gz, xz or zstd")
	f.StringVar(&o.sha256, "sha256", "", "what the file must have")
	f.StringVar(&o.sha512, "sha512", "", "what the file must have")
	f.StringVar(&o.r.Checksums, "checksums", "", "file or URL with a list of checksums")
	f.StringVar(&o.r.Signature, "signature", "", `file or URL of the list's signature; "inline" when the list holds it`)
	f.StringVar(&o.r.Keyring, "keyring", "", "file with the keys whose signature counts")
	f.StringVar(&o.known, "known", "", "an official artefact of the built-in list: ubuntu/24.04")
	f.StringSliceVar(&o.networks, "allow-network", nil, "private network that may be fetched from: 10.1.0.0/16; may be repeated")
	f.BoolVar(&o.http, "allow-http", false, "fetch by http too; needs a checksum or signature")
	f.Int64Var(&o.maxSize, "max-size", 64<<30, "of the file, in bytes")
	f.Int64Var(&o.maxUnpacked, "max-unpacked", 256<<30, "of what it unpacks to, in bytes")
	f.Int64Var(&o.maxRatio, "max-ratio", 1000, "of unpacked to packed, beyond the first GiB")
	f.DurationVar(&o.timeout, "timeout", 6*time.Hour, "for the whole import")
	f.StringVar(&o.out, "out", "", "directory for manifest and pack (default: in --cache-dir)")
	f.StringVar(&o.cache, "cache-dir", cacheDir(), "where a transfer that broke is kept")
	f.BoolVar(&o.register, "register", true, "upload and register the image at --server")
	cmd.RunE = a.with(func(ctx context.Context, c *apiclient.Client, args []string) error {
		if len(args) == 1 {
			o.r.From = args[0]
		}
		guard, err := o.fill()
		if err != nil {
			return err
		}
		name := o.r.Want.OS + "/" + o.r.Want.Version
		m := &meter{w: a.err, on: terminalOf(a.err), what: name}
		res, err := imageimport.Import(ctx, o.r, guard, imageimport.Limits{Bytes: o.maxSize, Unpacked: o.maxUnpacked, Ratio: o.maxRatio, Total: o.timeout}, m.step)
		m.done()
		if blocked, ok := errors.AsType[*imageimport.BlockedError](err); ok {
			fmt.Fprint(a.err, checksTable(&blocked.Report).text(terminalOf(a.err)))
			return err
		}
		if err != nil {
			return err
		}
		for at, why := range res.Whole {
			fmt.Fprintf(a.err, "%s: the filesystem at byte %d is packed whole, free space too: %s\n", name, at, plain(why))
		}
		if o.register {
			if err := uploadImage(ctx, c, o.r.OutDir, res.Image, a.steps(name)); err != nil {
				return err
			}
		}
		return a.print(res.Image, func(w *tabwriter.Writer, _ bool) {
			fmt.Fprint(w, describeImage(res.Image).text(terminal{}))
		})
	})
	return cmd
}

// fill completes the request from the flags and says what may be fetched.
func (o *importFlags) fill() (imageimport.Guard, error) {
	g := imageimport.Guard{Plain: o.http}
	bad := func(field, problem, value string) error {
		return &lpmos.InvalidError{Field: field, Problem: problem, Value: value}
	}
	if o.known != "" {
		k, err := imageimport.FindKnown(o.known)
		if err != nil {
			return g, &lpmos.InvalidError{Field: "known", Problem: "names no artefact of the built-in list (lpmos image catalogue)", Value: o.known}
		}
		o.r.Want.OS, o.r.Want.Version, o.r.Want.Arch = k.OS, k.Version, k.Arch
		o.r.Format, o.r.Compression = k.Format, k.Compression
		if o.r.From == "" {
			o.r.From = k.URL
		}
		if o.r.Checksums == "" && o.sha256 == "" && o.sha512 == "" {
			o.r.Checksums = k.Checksums
			if o.r.Keyring != "" && o.r.Signature == "" {
				o.r.Signature = k.Signature
			}
		}
	}
	for _, n := range o.networks {
		p, err := netip.ParsePrefix(n)
		if err != nil {
			return g, bad("allow-network", "is not a network, such as 10.1.0.0/16", n)
		}
		g.Allow = append(g.Allow, p.Masked())
	}
	for _, d := range []struct{ kind, hex string }{{"sha256", o.sha256}, {"sha512", o.sha512}} {
		if d.hex == "" {
			continue
		}
		s, err := imageimport.ParseSum(d.hex)
		if err != nil || s.Kind != d.kind {
			return g, bad(d.kind, "is not the hexadecimal digest that it should be", d.hex)
		}
		o.r.Sum = s
	}
	if o.sha256 != "" && o.sha512 != "" {
		return g, bad("sha512", "and sha256 cannot both be given", "")
	}
	if scheme(o.r.From) == "http" && o.r.Sum.Hex == "" && o.r.Signature == "" && scheme(o.r.Checksums) != "https" {
		return g, bad("allow-http", "needs a digest, a signature, or checksums by https: anybody on the way can change the file", "")
	}
	if o.out == "" {
		o.out = filepath.Join(o.cache, "images")
	}
	o.r.OutDir, o.r.WorkDir = o.out, filepath.Join(o.cache, "import")
	return g, o.r.Validate()
}

// scheme is that of an address, "" for a path.
func scheme(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		return ""
	}
	return u.Scheme
}

// meter shows how far a step is: on a terminal in one line that is drawn again,
// elsewhere a line for each step and one every ten seconds.
type meter struct {
	w    io.Writer
	on   terminal
	what string

	name         string
	began, drawn time.Time
	first        int64 // done when the step began
	shown        bool  // a line is being drawn
}

func (m *meter) step(name string, done, total int64) {
	now := time.Now()
	if name != m.name {
		m.done()
		m.name, m.began, m.first, m.drawn = name, now, done, time.Time{}
	}
	every := 10 * time.Second
	if m.on.cursor {
		every = 200 * time.Millisecond
	}
	if over := total > 0 && done >= total; now.Sub(m.drawn) < every && !over || m.drawn.IsZero() && total == 0 && done > 0 && !m.on.cursor && now.Sub(m.began) < time.Second {
		return
	}
	if !m.on.cursor && !m.drawn.IsZero() && total > 0 && done >= total && now.Sub(m.drawn) < time.Second {
		return // the step is over as fast as it was begun
	}
	m.drawn = now
	text := m.what + ": " + name + figures(done-m.first, done, total, now.Sub(m.began))
	if m.on.cursor {
		width, _ := m.on.size()
		fmt.Fprint(m.w, "\r\x1b[K"+clip(text, width-1))
		m.shown = true
		return
	}
	fmt.Fprintln(m.w, text)
}

// done ends the line that is being drawn.
func (m *meter) done() {
	if m.shown {
		fmt.Fprintln(m.w)
	}
	m.shown = false
}

// figures is " 1.2 GB of 3.4 GB, 56 MB/s, 40 s left", as far as it is known.
func figures(moved, done, total int64, took time.Duration) string {
	if done == 0 && total == 0 {
		return ""
	}
	s := " " + lpmos.FormatBytes(done)
	if total > 0 {
		s += " of " + lpmos.FormatBytes(total)
	}
	rate := float64(moved) / max(took.Seconds(), 0.001)
	if took < time.Second || rate < 1 {
		return s
	}
	s += ", " + lpmos.FormatBytes(int64(rate)) + "/s"
	if left := time.Duration(float64(total-done) / rate * float64(time.Second)); total > done {
		s += ", " + left.Round(time.Second).String() + " left"
	}
	return s
}

func (a *app) imageCatalogue() *cobra.Command {
	return &cobra.Command{
		Use: "catalogue", Short: "List official artefacts that can be imported by name", Args: exactly(0),
		Long: `Catalogue lists what distributions publish, as import --known takes it: address,
format, checksums and, where there is one, their signature. The list is built in;
addresses move, and what is wrong in it can be given by the flags of import.`,
		Example: "  lpmos image catalogue -o wide\n  lpmos image import --known rocky/9",
		RunE: func(*cobra.Command, []string) error {
			all := imageimport.Catalogue()
			return a.show(all, func(wide bool) *table {
				t := &table{head: []string{"NAME", "TITLE", "FORMAT", "VERIFIED BY"}}
				if wide {
					t.head = append(t.head, "URL", "NOTES")
				}
				for _, k := range all {
					by := "checksums by https"
					if k.Signature != "" {
						by = "signed checksums"
					}
					row := []cell{txt(k.Name()), txt(k.Title), txt(k.Format), txt(by)}
					if wide {
						row = append(row, txt(k.URL), txt(k.Notes))
					}
					t.add(row...)
				}
				return t
			})
		},
	}
}

// checksTable is what was looked at inside an image.
func checksTable(p *lpmos.Preflight) *table {
	t := &table{head: []string{"CHECK", "RESULT", "WHAT WAS FOUND"}}
	for _, c := range p.Checks {
		tn := normal
		switch c.Result {
		case lpmos.CheckProblem:
			tn = bad
		case lpmos.CheckWarning, lpmos.CheckUnknown:
			tn = attention
		}
		t.add(txt(plain(c.Name)), cell{plain(c.Result), tn}, txt(plain(c.Text)))
	}
	return t
}
