package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/apiclient"
)

func (a *app) templateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "template", Short: "Keep text that is written into installed systems",
		Long: `A template is text with names in braces, such as {{hostname}}, for which each machine's
facts are put. It is rendered when a plan is made, and approved with it.`,
		Example: `  lpmos template put base --file user-data.yaml
  lpmos template preview base --task web-01`,
	}
	list := &cobra.Command{Use: "list", Short: "List templates", Args: exactly(0), Example: "  lpmos template list", RunE: a.with(func(ctx context.Context, c *apiclient.Client, _ []string) error {
		all, err := c.Templates(ctx)
		if err != nil {
			return err
		}
		return a.show(all, func(bool) *table {
			v := &table{
				head:  []string{"TEMPLATE", "VERSION", "KIND", "SIZE", "PROFILES", "TASKS", "CHANGED", "DESCRIPTION"},
				empty: "No templates. Make one:  lpmos template put NAME --file user-data.yaml",
			}
			for _, t := range all {
				profiles := ""
				if t.UsedBy != nil {
					profiles = strings.Join(t.UsedBy.Profiles, ", ")
				}
				v.row(t.Name, fmt.Sprint(t.Version), t.Kind, lpmos.FormatBytes(int64(len(t.Text))), dash(profiles), uses(t.UsedBy), age(t.UpdatedAt), dash(t.Description))
			}
			return v
		})
	})}
	show := &cobra.Command{Use: "show NAME", Short: "Print the text of a template", Args: exactly(1), Example: "  lpmos template show base > user-data.yaml", ValidArgsFunction: a.completeTemplates, RunE: a.with(func(ctx context.Context, c *apiclient.Client, args []string) error {
		t, err := c.Template(ctx, args[0])
		if err != nil {
			return err
		}
		return a.print(t, func(*tabwriter.Writer, bool) { a.writeText(t.Text) })
	})}
	cmd.AddCommand(list, show, a.templatePut(), a.templatePreview(), a.deleteNamed("template", a.completeTemplates, (*apiclient.Client).DeleteTemplate))
	return cmd
}

// writeText prints text line by line, harmless to a terminal.
func (a *app) writeText(text string) {
	for line := range strings.Lines(text) {
		// A tab is text here, and plain would show it.
		parts := strings.Split(strings.TrimRight(line, "\r\n"), "\t")
		for i := range parts {
			parts[i] = plain(parts[i])
		}
		fmt.Fprintln(a.out, strings.Join(parts, "\t"))
	}
}

func (a *app) templatePut() *cobra.Command {
	var file, kind, description string
	var version int
	cmd := &cobra.Command{
		Use: "put NAME --file FILE", Short: "Make a template, or the next version of one", ValidArgsFunction: a.completeTemplates,
		Long: `Put stores the text of a file ("-" for standard input). {{name}} in it stands for a
fact of the machine, {{json name}} for one in quotes. There is
` + folded(lpmos.TemplateFacts()) + `.
Nothing else can be reached from a template. It is rendered when a task's plan is
made, stands in the plan for the person who approves, and is no place for secrets.
Tasks that exist keep the template they were created with.`,
		Example: `  lpmos template put base --file user-data.yaml
  lpmos template preview base`,
		Args: exactly(1),
	}
	f := cmd.Flags()
	f.StringVarP(&file, "file", "f", "", "the text (required)")
	f.StringVar(&kind, "kind", "", "what it is: "+strings.Join(lpmos.TemplateKinds, ", ")+" (default: what it was, or "+lpmos.TemplateUserData+")")
	f.StringVar(&description, "description", "", "what it is for")
	f.IntVar(&version, "version", 0, "the version the change is based on (default: the newest)")
	cmd.RunE = a.with(func(ctx context.Context, c *apiclient.Client, args []string) error {
		if file == "" {
			return usageError{errors.New("--file is missing")}
		}
		b, err := readInput(file)
		if err != nil {
			return err
		}
		was, err := c.Template(ctx, args[0])
		if err != nil && !errors.Is(err, lpmos.ErrNotFound) {
			return err
		}
		next := was.Template
		next.Name, next.Kind, next.Text = args[0], cmp.Or(kind, next.Kind, lpmos.TemplateUserData), string(b)
		if f.Changed("description") {
			next.Description = description
		}
		if f.Changed("version") {
			next.Version = version
		}
		out, err := c.PutTemplate(ctx, next, next.Version)
		if err != nil {
			return err
		}
		return a.print(out, func(w *tabwriter.Writer, _ bool) {
			fmt.Fprintf(w, "template %s: stored\n", clip(plain(out.Ref()), maxCell))
		})
	})
	return cmd
}

// folded is names in lines of at most 80 columns.
func folded(names []string) string {
	var b strings.Builder
	column := 0
	for i, name := range names {
		if i > 0 {
			b.WriteByte(',')
			if column++; column+len(name)+2 > 78 {
				b.WriteByte('\n')
				column = 0
			} else {
				b.WriteByte(' ')
				column++
			}
		}
		b.WriteString(name)
		column += len(name)
	}
	return b.String()
}

func (a *app) templatePreview() *cobra.Command {
	var task string
	cmd := &cobra.Command{Use: "preview NAME", Short: "Print what a machine would get", Args: exactly(1), Example: "  lpmos template preview base --task web-01", ValidArgsFunction: a.completeTemplates, RunE: a.with(func(ctx context.Context, c *apiclient.Client, args []string) error {
		id := task
		if id != "" {
			var err error
			if id, err = find(ctx, c, task); err != nil {
				return err
			}
		}
		p, err := c.Preview(ctx, args[0], id)
		if err != nil {
			return err
		}
		return a.print(p, func(*tabwriter.Writer, bool) { a.writeText(p.Text) })
	})}
	cmd.Flags().StringVar(&task, "task", "", "the task whose machine it is for (default: a sample)")
	return cmd
}
