package cli

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/apiclient"
)

func (a *app) imageCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "image", Short: "Build, import, list and delete what can be installed",
		Long: `An image is a root filesystem or a whole disk in verified chunks, known by the
digest of its manifest. IMAGE is its name, os/version/arch; the architecture may be
left out.`,
		Example: `  lpmos image build debian-12
  lpmos image import --known ubuntu/24.04
  lpmos image list`,
	}
	list := &cobra.Command{
		Use: "list", Short: "List the catalogue", Args: exactly(0),
		Long:    "List shows what can be installed, how much is transferred and written for it, and\nwhat firmware it boots with.",
		Example: "  lpmos image list -o wide",
		RunE: a.with(func(ctx context.Context, c *apiclient.Client, _ []string) error {
			images, err := c.Images(ctx)
			if err != nil {
				return err
			}
			return a.show(images, func(wide bool) *table { return imageTable(images, wide) })
		}),
	}
	show := &cobra.Command{
		Use: "show IMAGE", Short: "Show one image", Args: exactly(1), ValidArgsFunction: a.completeImages,
		Long:    "Show prints what the catalogue has about an image.",
		Example: "  lpmos image show debian/12/amd64",
		RunE: a.with(func(ctx context.Context, c *apiclient.Client, args []string) error {
			i, err := findImage(ctx, c, args[0])
			if err != nil {
				return err
			}
			return a.show(i, func(bool) *table { return describeImage(i) })
		}),
	}
	cmd.AddCommand(list, show, a.imageDelete(), a.imageBuild(), a.imageImport(), a.imageInstaller(), a.imageCertify(), a.imageCatalogue())
	return cmd
}

// findImage takes os/version/arch, or without the architecture where that is
// enough.
func findImage(ctx context.Context, c *apiclient.Client, name string) (lpmos.Image, error) {
	images, err := c.Images(ctx)
	if err != nil {
		return lpmos.Image{}, err
	}
	var match []lpmos.Image
	var names []string
	for _, i := range images {
		names = append(names, i.Name())
		if i.Name() == name {
			return i, nil
		}
		if strings.HasPrefix(i.Name(), name+"/") {
			match = append(match, i)
		}
	}
	switch len(match) {
	case 0:
		next := "see what there is: lpmos image list"
		if near := nearest(name, names); len(near) > 0 {
			next = "did you mean " + strings.Join(near, " or ") + "?"
		}
		return lpmos.Image{}, hinted{fmt.Errorf("image %s: %w", lpmos.Shorten(name, 64), lpmos.ErrNotFound), next}
	case 1:
		return match[0], nil
	}
	return lpmos.Image{}, &lpmos.InvalidError{Field: "image", Problem: fmt.Sprintf("is the beginning of %d images: give os/version/arch", len(match)), Value: name}
}

func (a *app) imageDelete() *cobra.Command {
	cmd := &cobra.Command{
		Use: "delete IMAGE", Short: "Take an image out of the catalogue", Args: exactly(1), ValidArgsFunction: a.completeImages,
		Long: `Delete takes an image out of the catalogue: no new task can name it. Systems that
run from it are not touched. Tasks that have not ended would fail, so it is
refused while there are any, and while a profile names it.`,
		Example: "  lpmos image delete debian/11/amd64",
	}
	cmd.RunE = a.with(func(ctx context.Context, c *apiclient.Client, args []string) error {
		i, err := findImage(ctx, c, args[0])
		if err != nil {
			return err
		}
		users, err := imageUsers(ctx, c, i)
		if err != nil {
			return err
		}
		if len(users) > 0 {
			return hinted{
				&lpmos.ConflictError{Problem: fmt.Sprintf("%s that has not ended uses %s (%s)", count(len(users), "task", "tasks"), i.Name(), strings.Join(users[:min(len(users), 3)], ", "))},
				"let them end, or cancel them",
			}
		}
		if err := c.DeleteImage(ctx, i.OS, i.Version, i.Arch); err != nil {
			return err
		}
		return a.print(i, func(w *tabwriter.Writer, _ bool) {
			fmt.Fprintf(w, "image %s: deleted from the catalogue\n", plain(i.Name()))
		})
	})
	return cmd
}

// imageUsers are the beginnings of the ids of tasks that have not ended and use
// the image.
func imageUsers(ctx context.Context, c *apiclient.Client, i lpmos.Image) ([]string, error) {
	sel := selection{all: true, limit: 1, text: anywhere(i.OS)}
	var live []string
	for _, s := range lpmos.Statuses {
		if s.Live() {
			live = append(live, string(s))
		}
	}
	sel.status = strings.Join(live, ",")
	l, err := sel.read(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("look for tasks that use %s: %w", i.Name(), err)
	}
	var users []string
	for _, t := range l.Tasks {
		if t.OSType == i.OS && t.OSVersion == i.Version && t.Arch == i.Arch {
			users = append(users, t.ID[:8])
		}
	}
	return users, nil
}

func imageTable(images []lpmos.Image, wide bool) *table {
	t := &table{
		head:  []string{"IMAGE", "TITLE", "TRANSFER", "WRITTEN", "BOOT", "TRIED", "BUILT"},
		empty: "The catalogue is empty. Build an image:  lpmos image build debian-12",
	}
	if wide {
		t.head = append(t.head, "DIGEST")
	}
	for _, i := range images {
		row := []cell{txt(i.Name()), txt(i.Title), txt(lpmos.FormatBytes(i.StoredBytes)), txt(lpmos.FormatBytes(i.UsedBytes)), txt(strings.Join(i.BootModes, ",")), triedCell(i), {age(i.CreatedAt), dim}}
		if wide {
			row = append(row, txt(i.Digest))
		}
		t.add(row...)
	}
	return t
}

// triedCell is what came of trials, in short.
func triedCell(i lpmos.Image) cell {
	var out []string
	tn := dim
	for _, t := range trials {
		b, ok := i.Badge(t.name)
		switch {
		case ok && b.Passed:
			out = append(out, t.name)
		case ok:
			out, tn = append(out, t.name+" failed"), bad
		}
	}
	return cell{cmp.Or(strings.Join(out, ", "), "-"), tn}
}

func describeImage(i lpmos.Image) *table {
	v := &table{}
	v.field("image", plain(i.Name()), strong)
	v.field("title", plain(i.Title))
	v.field("digest", plain(i.Digest))
	v.field("transfer", lpmos.FormatBytes(i.StoredBytes)+" over the network")
	if i.Installer == nil {
		v.field("written", lpmos.FormatBytes(i.UsedBytes)+" to disk")
	} else {
		v.field("answers", plain(i.Installer.Answers))
		v.field("repository", plain(i.Installer.Repository))
		v.field("kernel args", plain(i.Installer.KernelArgs))
	}
	v.field("kind", kindWords(i.Kind()))
	v.field("needs", "a disk of "+lpmos.FormatBytes(i.DiskBytes())+" or more")
	v.field("boots", plain(strings.Join(i.BootModes, ", ")))
	for _, t := range trials {
		if b, ok := i.Badge(t.name); ok && b.Passed {
			v.field("tried", plain(t.name+": "+b.Text)+", "+moment(b.At), good)
		} else if ok {
			v.field("tried", plain(t.name+" failed: "+b.Text)+", "+moment(b.At), bad)
		}
	}
	if s := i.Source; s != nil {
		v.field("from", plain(s.URL)+" ("+plain(s.Format)+", "+lpmos.FormatBytes(s.Bytes)+")")
		switch {
		case s.Signer != "":
			v.field("verified", "signed by "+plain(s.Signer), good)
		case s.Checksum != "":
			v.field("verified", "by a checksum from "+plain(s.From), good)
		default:
			v.field("verified", "by nothing: no checksum was given", attention)
		}
	}
	if p := i.Preflight; p != nil {
		v.field("system", plain(p.PrettyName))
		v.field("kernel", plain(p.Kernel))
		v.field("user", plain(p.DefaultUser))
		for _, c := range p.Checks {
			if tn, ok := checkTones[c.Result]; ok {
				v.field(c.Result, plain(c.Text), tn)
			}
		}
	}
	if i.Signature.KeyID != "" {
		v.field("signed by", "control plane key "+plain(i.Signature.KeyID))
	}
	v.field("built", moment(i.CreatedAt))
	v.field("install it", plain(fmt.Sprintf("lpmos task create --os %s --os-version %s --arch %s --region … --mac …", i.OS, i.Version, i.Arch)), dim)
	return v
}

// writeImages is imageTable for commands that print more around it.
func writeImages(w *tabwriter.Writer, images []lpmos.Image, wide bool) {
	fmt.Fprint(w, imageTable(images, wide).text(terminal{}))
}

// checkTones are of the results that a person should see.
var checkTones = map[string]tone{lpmos.CheckProblem: bad, lpmos.CheckWarning: attention, lpmos.CheckUnknown: attention}

func kindWords(kind string) string {
	switch kind {
	case lpmos.FormatDisk:
		return "whole disk, with its own boot loader"
	case lpmos.FormatTar:
		return "root filesystem for declared layouts"
	case lpmos.FormatInstaller:
		return "the distribution's own installer"
	}
	return "root filesystem"
}
