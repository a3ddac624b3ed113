package cli

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/apiclient"
	"github.com/lpmos/lpmos/internal/controlplane/query"
)

func (a *app) auditCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "audit", Short: "See who changed what, from where, and that nobody altered the record",
		Long: `Every change to users, tokens, regions, images, profiles, templates, locks, limits
and the emergency stop is written down together with the change: who, from where,
before and after. What happened to a task is in its own history (lpmos task show).

Each entry has a hash over itself and the one before. The control plane signs the
newest hash daily, when it starts and when it ends. So nothing can be altered,
removed or reordered unnoticed, and nothing cut off that was signed.`,
		Example: `  lpmos audit list --by anna --after 7d
  lpmos audit verify --key signing.pub`,
	}
	cmd.AddCommand(a.auditList(), a.auditShow(), a.auditExport(), a.auditVerify())
	return cmd
}

// readMoment is a time as people type it: a date, a time, or an age.
func readMoment(flag, v string) (string, error) {
	if v == "" {
		return "", nil
	}
	m, ok := query.Moment(v)
	if !ok || m.Op != "" {
		return "", usageError{fmt.Errorf("--%s %q is neither an age such as 2h or 7d nor a time such as 2026-11-01 or 2026-11-01T12:00:00Z", flag, v)}
	}
	at := m.At
	if at.IsZero() {
		at = time.Now().Add(-m.Age)
	}
	return at.UTC().Format(time.RFC3339), nil
}

func (a *app) auditList() *cobra.Command {
	var by, action, subject, after, before string
	var limit int
	cmd := &cobra.Command{
		Use: "list", Short: "List what administrators did, newest first", Args: exactly(0),
		Long: `List shows changes, newest first. --action takes user.create, or user for
everything about users; --subject a part of what it was done to.`,
		Example: `  lpmos audit list --action user --after 30d
  lpmos audit list --subject "region dc1" -o json`,
	}
	f := cmd.Flags()
	f.StringVar(&by, "by", "", "who did it, whole: anna, \"region dc1\"")
	f.StringVar(&action, "action", "", "what was done: user, user.create, machine.lock")
	f.StringVar(&subject, "subject", "", "a part of what it was done to")
	f.StringVar(&after, "after", "", "not before: an age (2h, 7d) or a time")
	f.StringVar(&before, "before", "", "before: an age or a time")
	f.IntVar(&limit, "limit", 50, "at most so many, 0 for all")
	_ = cmd.RegisterFlagCompletionFunc("action", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return lpmos.AuditActions, cobra.ShellCompDirectiveNoFileComp
	})
	cmd.RunE = a.with(func(ctx context.Context, c *apiclient.Client, _ []string) error {
		q := url.Values{}
		from, err := readMoment("after", after)
		if err != nil {
			return err
		}
		to, err := readMoment("before", before)
		if err != nil {
			return err
		}
		if limit < 0 {
			return usageError{errors.New("--limit is negative")}
		}
		for k, v := range map[string]string{"by": by, "action": action, "subject": subject, "after": from, "before": to} {
			if v != "" {
				q.Set(k, v)
			}
		}
		all := []lpmos.AuditEntry{}
		err = paged(q, limit, func() (int, string, error) {
			page, err := c.Audit(ctx, q)
			all = append(all, page.Entries...)
			return len(page.Entries), page.NextCursor, err
		})
		if err != nil {
			return err
		}
		return a.show(all, func(wide bool) *table { return auditTable(all, wide) })
	})
	return cmd
}

func auditTable(all []lpmos.AuditEntry, wide bool) *table {
	t := &table{head: []string{"ENTRY", "WHEN", "WHO", "FROM", "ACTION", "SUBJECT", "CHANGE"}, empty: "Nothing matches."}
	if wide {
		t.head = append(t.head, "WITH", "HASH")
	}
	for i := range all {
		e := &all[i]
		var changes []string
		for _, c := range e.Changes() {
			changes = append(changes, c.Field+" "+changeText(c))
		}
		row := []string{strconv.FormatInt(e.Seq, 10), e.At.Local().Format(time.DateTime), e.By, e.Peer, e.Action, e.Subject, strings.Join(changes, ", ")}
		if wide {
			row = append(row, e.Via, e.Hash)
		}
		t.row(row...)
	}
	return t
}

func changeText(c lpmos.AuditChange) string {
	switch {
	case c.Made:
		return c.After
	case c.Gone:
		return "was " + c.Before
	}
	return c.Before + " → " + c.After
}

func (a *app) auditShow() *cobra.Command {
	return &cobra.Command{
		Use: "show ENTRY", Short: "Show one entry whole", Args: exactly(1), ValidArgsFunction: cobra.NoFileCompletions,
		Long:    "Show prints one entry, by its number, with everything before and after.",
		Example: "  lpmos audit show 42",
		RunE: a.with(func(ctx context.Context, c *apiclient.Client, args []string) error {
			e, err := c.AuditEntry(ctx, args[0])
			if err != nil {
				return err
			}
			return a.show(e, func(bool) *table {
				t := &table{}
				t.field("entry", strconv.FormatInt(e.Seq, 10), strong)
				t.field("when", e.At.Local().Format("2006-01-02 15:04:05 -0700"))
				t.field("who", e.By)
				t.field("from", e.Peer)
				t.field("with", e.Via)
				t.field("action", e.Action, strong)
				t.field("subject", e.Subject, strong)
				for _, c := range e.Changes() {
					t.field(c.Field, changeText(c))
				}
				if n := len(e.Heads); n > 0 {
					t.field("chains of", count(n, "task", "tasks"))
				}
				t.field("hash", e.Hash)
				t.field("follows", e.PrevHash)
				return t
			})
		}),
	}
}

func (a *app) auditExport() *cobra.Command {
	return &cobra.Command{
		Use: "export FILE", Short: "Copy the whole record to a file", Args: exactly(1),
		Long: `Export writes everything that verify looks at, one JSON value a line: entries,
signed heads, and the history of every task. "-" is standard output. Keep a copy
where nobody who can reach the store can reach it.`,
		Example: "  lpmos audit export audit.ndjson",
		RunE: a.with(func(ctx context.Context, c *apiclient.Client, args []string) (err error) {
			out := a.out
			if args[0] != "-" {
				// A copy that exists may be the only true one.
				f, err := os.OpenFile(args[0], os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
				if err != nil {
					return fmt.Errorf("export the audit: %w", err)
				}
				defer f.Close()
				out = f
			}
			lines := int64(0)
			if err := c.ExportAudit(ctx, func(r io.Reader) (err error) {
				lines, err = copyLines(out, r)
				return err
			}); err != nil {
				return fmt.Errorf("export the audit: %w", err)
			}
			if f, ok := out.(*os.File); ok && args[0] != "-" {
				if err := errors.Join(f.Sync(), f.Close()); err != nil {
					return fmt.Errorf("export the audit: %w", err)
				}
				return a.say(map[string]any{"file": args[0], "lines": lines}, fmt.Sprintf("%s: %d lines; check it any time with lpmos audit verify %[1]s", plain(args[0]), lines))
			}
			return nil
		}),
	}
}

// copyLines copies an export, in which no terminal finds anything to obey.
func copyLines(w io.Writer, r io.Reader) (lines int64, err error) {
	err = eachLine(r, func(line []byte) error {
		lines++
		_, err := w.Write(append(inertJSON(line), '\n'))
		return err
	})
	return lines, err
}

// maxExportLine bounds one line of an export.
const maxExportLine = 16 << 20

func eachLine(r io.Reader, f func([]byte) error) error {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 64<<10), maxExportLine)
	for s.Scan() {
		if err := f(s.Bytes()); err != nil {
			return err
		}
	}
	return s.Err()
}

// verified is what verify says for programs.
type verified struct {
	Whole   bool              `json:"whole"`
	Problem string            `json:"problem,omitempty"`
	Entry   int64             `json:"entry,omitempty"` // the first that is not as it was written; of Task, its event
	Task    string            `json:"task,omitempty"`
	Report  lpmos.AuditReport `json:"report"`
}

func (a *app) auditVerify() *cobra.Command {
	var keyFile string
	cmd := &cobra.Command{
		Use: "verify [FILE]", Short: "Check that nothing was altered, removed or reordered", Args: atMost(1),
		Long: `Verify reads the whole record, from the control plane or from an exported FILE,
without asking anybody in the latter case. It checks every hash of the
administration chain and of every task's history, every signed head, and that no
task is gone that nobody deleted. The first thing that is not as it was written is
named, and the exit code is 8.

Signatures are checked with the keys in --key, a copy of signing.pub from the
control plane's data directory. Without it the keys are taken from the record
itself, which proves nothing against who could write to the store.`,
		Example: `  lpmos audit verify --key signing.pub
  lpmos audit verify audit.ndjson --key signing.pub`,
	}
	cmd.Flags().StringVar(&keyFile, "key", "", "file with the control plane's public keys (PEM)")
	cmd.RunE = a.run(func(ctx context.Context, args []string) error {
		v := &lpmos.AuditVerifier{}
		if keyFile != "" {
			var err error
			if v.Keys, err = readPublicKeys(keyFile); err != nil {
				return err
			}
		}
		read := func(r io.Reader) error {
			return eachLine(r, func(line []byte) error {
				var rec lpmos.AuditRecord
				if err := json.Unmarshal(line, &rec); err != nil {
					return &lpmos.AuditError{Problem: "a line of the export is not JSON of the form that it has: " + err.Error()}
				}
				return v.Add(rec)
			})
		}
		var err error
		if len(args) == 1 {
			var f *os.File
			if f, err = os.Open(args[0]); err != nil {
				return fmt.Errorf("verify the audit: %w", err)
			}
			defer f.Close()
			err = read(f)
		} else {
			var c *apiclient.Client
			if c, err = a.client(); err != nil {
				return err
			}
			err = c.ExportAudit(ctx, read)
		}
		report, unfinished := v.Report()
		if err == nil {
			err = unfinished
		}
		out := verified{Whole: err == nil, Report: report}
		if err != nil {
			bad, ok := errors.AsType[*lpmos.AuditError](err)
			if !ok {
				return fmt.Errorf("verify the audit: %w", err)
			}
			out.Problem, out.Entry, out.Task = bad.Problem, bad.Seq, bad.Task
		}
		if err := a.show(out, func(bool) *table { return verifiedTable(out, keyFile != "") }); err != nil {
			return err
		}
		if !out.Whole {
			return quietError(ExitAltered)
		}
		return nil
	})
	return cmd
}

func verifiedTable(v verified, pinned bool) *table {
	t := &table{}
	if !v.Whole {
		t.field("result", "ALTERED", bad)
		if v.Task != "" {
			t.field("task", v.Task, strong)
		}
		t.field("first", sentenceOf(v.Problem), strong)
		t.field("next", "restore the store from a backup from before, or compare with an export kept elsewhere")
		return t
	}
	r := v.Report
	t.field("result", "whole", good)
	entries := "none yet"
	switch {
	case r.Last > 0 && r.First > 1:
		entries = fmt.Sprintf("%d to %d (older ones were removed by age)", r.First, r.Last)
	case r.Last > 0:
		entries = fmt.Sprintf("1 to %d", r.Last)
	}
	t.field("entries", entries)
	t.field("tasks", fmt.Sprintf("%s with %s", count(r.Tasks, "task", "tasks"), count(r.Events, "event", "events")))
	if r.Signed == nil {
		t.field("signed", "not yet: what is cut off at the end would not be noticed", attention)
		return t
	}
	t.field("signed", fmt.Sprintf("up to entry %d, at %s, by key %s (%s)", r.Signed.Seq, r.Signed.At.Local().Format("2006-01-02 15:04:05 -0700"), r.Signed.Signature.KeyID, count(r.Heads, "signed head", "signed heads")))
	if n := r.Unsigned(); n > 0 {
		t.field("not signed", count(int(n), "entry that came after", "entries that came after"))
	}
	if !pinned {
		t.field("note", "the key is the one that the record names; compare it with a copy of signing.pub: --key", attention)
	}
	return t
}

// sentenceOf begins with a capital letter and ends with a full stop.
func sentenceOf(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:] + "."
}

// readPublicKeys reads Ed25519 public keys in PEM.
func readPublicKeys(path string) (keys []ed25519.PublicKey, err error) {
	rest, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read --key: %w", err)
	}
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		key, err := x509.ParsePKIXPublicKey(block.Bytes)
		pub, ok := key.(ed25519.PublicKey)
		if err != nil || !ok {
			return nil, usageError{fmt.Errorf("--key %s holds something else than Ed25519 public keys", path)}
		}
		keys = append(keys, pub)
	}
	if len(keys) == 0 {
		return nil, usageError{fmt.Errorf("--key %s holds no public key in PEM: signing.pub in the control plane's data directory is one", path)}
	}
	return keys, nil
}
