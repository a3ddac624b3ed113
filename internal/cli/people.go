package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/apiclient"
	"github.com/lpmos/lpmos/internal/service"
)

// credential is what lpmos login keeps for one server.
type credential struct {
	User      string    `json:"user"`
	Token     string    `json:"token"`
	ExpiresAt time.Time `json:"expires_at,omitzero"` // of a token that login made
}

// credentialsFile is where they are kept, by server; only its owner reads it.
func credentialsFile() (string, error) {
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", fmt.Errorf("find where to keep credentials: %w", err)
	}
	return filepath.Join(dir, "lpmos", "credentials.json"), nil
}

func readCredentials() (map[string]credential, error) {
	out := map[string]credential{}
	path, err := credentialsFile()
	if err != nil {
		return out, nil // no home: nothing is kept
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return out, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read credentials: %w", err)
	}
	if err := json.Unmarshal(b, &out); err != nil {
		return nil, hinted{fmt.Errorf("read credentials: %s: %w", path, err), "remove that file and sign in again: lpmos login"}
	}
	return out, nil
}

func writeCredentials(all map[string]credential) error {
	path, err := credentialsFile()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("keep credentials: %w", err)
	}
	b, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return fmt.Errorf("keep credentials: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".credentials-*") // mode 0600
	if err != nil {
		return fmt.Errorf("keep credentials: %w", err)
	}
	defer os.Remove(f.Name()) // gone once it is renamed
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("keep credentials: %w", err)
	}
	return nil
}

// credit gives a client what to show: --token, --token-file, or what login
// kept, if anything.
func (a *app) credit(c *apiclient.Client) error {
	if a.token != "" {
		c.UseToken(a.token)
		return nil
	}
	if a.tokenIn != "" {
		if _, err := a.readToken(); err != nil {
			return err
		}
		c.UseTokenFile(a.tokenIn)
		return nil
	}
	all, err := readCredentials()
	if kept, ok := all[c.Server()]; ok {
		c.UseToken(kept.Token)
	}
	return err
}

// readToken reads --token-file.
func (a *app) readToken() (string, error) {
	b, err := os.ReadFile(a.tokenIn)
	if err != nil {
		return "", fmt.Errorf("read --token-file: %w", err)
	}
	return oneToken(string(b), "--token-file "+a.tokenIn)
}

// oneToken is the token that a text is, from where the text came.
func oneToken(text, from string) (string, error) {
	token := strings.TrimSpace(text)
	if token == "" || strings.ContainsAny(token, " \r\n\t") {
		return "", usageError{fmt.Errorf("%s holds no token", from)}
	}
	return token, nil
}

// keep stores what this host shows to a server from now on.
func keep(c *apiclient.Client, one credential) error {
	all, err := readCredentials()
	if err != nil {
		return err
	}
	all[c.Server()] = one
	return writeCredentials(all)
}

// prompt puts a question and reads one line; what is secret is not shown on a
// terminal.
func (a *app) prompt(question string, secret bool) (string, error) {
	fmt.Fprint(a.err, question)
	if f, ok := a.in.(*os.File); ok && secret && term.IsTerminal(int(f.Fd())) {
		b, err := term.ReadPassword(int(f.Fd()))
		fmt.Fprintln(a.err)
		if err != nil {
			return "", fmt.Errorf("read the answer: %w", err)
		}
		return string(b), nil
	}
	r, ok := a.in.(*bufio.Reader)
	if !ok {
		r = bufio.NewReader(a.in)
		a.in = r
	}
	line, err := r.ReadString('\n')
	if err != nil && line == "" {
		return "", usageError{errors.New("no answer came: it is asked for on a terminal, or read from the lines of standard input")}
	}
	return strings.TrimRight(line, "\r\n"), nil
}

// row is add for cells that are nothing but text.
func (t *table) row(texts ...string) {
	cells := make([]cell, len(texts))
	for i, text := range texts {
		cells[i].text = text
	}
	t.add(cells...)
}

// run makes a RunE whose context ends at a signal.
func (a *app) run(run func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		ctx, cancel := service.Signals(cmd.Context(), quietLog)
		defer cancel()
		return run(ctx, args)
	}
}

func atMost(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > n {
			return usageError{fmt.Errorf("%s takes at most %s, got %d (see %s --help)", cmd.Name(), count(n, "argument", "arguments"), len(args), cmd.CommandPath())}
		}
		return nil
	}
}

func (a *app) loginCommand() *cobra.Command {
	var days int
	cmd := &cobra.Command{
		Use: "login [USER]", Short: "Sign in, and keep a token for this server", Args: atMost(1),
		Long: `Login asks for the password and keeps a token that it makes in your configuration
directory, in a file that only you can read. A one-time password is replaced
first. Programs do better with a token of their own: lpmos token create.

Who signs in with an identity provider has no password here. Make a token in the
web interface instead (Tokens), and let login keep it: with --token-file - it is
asked for, or read from standard input.`,
		Example: `  lpmos login anna --server https://lpmos.example.net
  lpmos login --token-file -
  printf '%s\n' "$PASSWORD" | lpmos login anna`,
	}
	cmd.Flags().IntVar(&days, "days", 30, "how long the token lives")
	cmd.RunE = a.run(func(ctx context.Context, args []string) error {
		c, err := a.stranger()
		if err != nil {
			return err
		}
		if a.tokenIn != "" {
			if len(args) > 0 {
				return usageError{errors.New("give a user, whose password is asked for, or --token-file, not both")}
			}
			return a.loginByToken(ctx, c)
		}
		var name string
		if len(args) == 1 {
			name = args[0]
		} else if name, err = a.prompt("User: ", false); err != nil {
			return err
		}
		password, err := a.prompt("Password: ", true)
		if err != nil {
			return err
		}
		me, err := c.Login(ctx, name, password)
		if errors.Is(err, lpmos.ErrSignedOut) {
			return hinted{err, "who signs in with an identity provider makes a token at " + c.Server() + "/tokens, and gives it: lpmos login --token-file -"}
		}
		if err != nil {
			return err
		}
		if me.MustChange {
			fmt.Fprintln(a.err, "That was a one-time password. Choose one of your own, of at least", lpmos.MinPassword, "characters.")
			again := ""
			fresh, err := a.prompt("New password: ", true)
			if err == nil {
				again, err = a.prompt("The same once more: ", true)
			}
			if err != nil {
				return err
			}
			if fresh != again {
				return usageError{errors.New("the two are not the same: nothing was changed")}
			}
			if err := c.ChangePassword(ctx, password, fresh); err != nil {
				return err
			}
		}
		host, err := os.Hostname()
		if err != nil {
			host = "a terminal"
		}
		t, err := c.CreateToken(ctx, apiclient.NewToken{Name: lpmos.Shorten("lpmos login on "+plain(host), 60), ExpiresIn: int64(days) * 24 * 3600})
		if err != nil {
			return err
		}
		if err := keep(c, credential{me.Name, t.Token, t.ExpiresAt}); err != nil {
			return err
		}
		if err := c.Logout(ctx); err != nil { // the session was only for making it
			return err
		}
		return a.say(map[string]any{"server": c.Server(), "user": me.Name, "role": me.Role, "expires_at": t.ExpiresAt},
			fmt.Sprintf("Signed in to %s as %s (%s) until %s.", c.Server(), plain(me.Name), plain(string(me.Role)), t.ExpiresAt.Local().Format("2006-01-02")))
	})
	return cmd
}

// loginByToken keeps a token that was made elsewhere, once the server has said
// whose it is.
func (a *app) loginByToken(ctx context.Context, c *apiclient.Client) error {
	var token string
	var err error
	if a.tokenIn != "-" {
		token, err = a.readToken()
	} else if token, err = a.prompt("Token: ", true); err == nil {
		token, err = oneToken(token, "what was given")
	}
	if err != nil {
		return err
	}
	c.UseToken(token)
	me, err := c.Me(ctx)
	if err != nil {
		return err
	}
	if err := keep(c, credential{User: me.Name, Token: token}); err != nil {
		return err
	}
	return a.say(map[string]any{"server": c.Server(), "user": me.Name, "role": me.Role, "token": me.Token},
		fmt.Sprintf("Signed in to %s as %s (%s), with the token %s.", c.Server(), plain(me.Name), plain(string(me.Role)), plain(me.Token)))
}

func (a *app) logoutCommand() *cobra.Command {
	return &cobra.Command{
		Use: "logout", Short: "End the token that login keeps for this server", Args: exactly(0),
		Long:    "Logout ends the token at the server, and forgets it here.",
		Example: "  lpmos logout --server https://lpmos.example.net",
		RunE: a.run(func(ctx context.Context, _ []string) error {
			c, err := a.stranger()
			if err != nil {
				return err
			}
			all, err := readCredentials()
			if err != nil {
				return err
			}
			kept, ok := all[c.Server()]
			if !ok {
				return fmt.Errorf("%w: nobody is signed in to %s here", lpmos.ErrNotFound, c.Server())
			}
			delete(all, c.Server())
			if err := writeCredentials(all); err != nil {
				return err
			}
			c.UseToken(kept.Token)
			if err := c.Logout(ctx); err != nil && !errors.Is(err, lpmos.ErrSignedOut) {
				return fmt.Errorf("the token is forgotten here, but lives on at the server: %w", err)
			}
			return a.say(map[string]any{"server": c.Server(), "signed_in": false}, "Signed out of "+c.Server()+".")
		}),
	}
}

func (a *app) whoamiCommand() *cobra.Command {
	return &cobra.Command{
		Use: "whoami", Short: "Say who you are to this server", Args: exactly(0),
		Long:    "Whoami shows the user, the role and the regions that commands act with.",
		Example: "  lpmos whoami",
		RunE: a.with(func(ctx context.Context, c *apiclient.Client, _ []string) error {
			me, err := c.Me(ctx)
			if err != nil {
				return err
			}
			return a.show(me, func(bool) *table {
				t := &table{head: []string{"USER", "ROLE", "REGIONS", "BY"}}
				by := me.Kind
				if me.Token != "" {
					by += " " + me.Token
				}
				t.row(me.Name, string(me.Role), where(me.Regions), by)
				return t
			})
		}),
	}
}

// where spells a limit to regions.
func where(regions []string) string {
	if regions == nil {
		return "all"
	}
	return strings.Join(regions, ",")
}

func (a *app) userCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "user", Short: "Say who may sign in, and what they may do",
		Long: `A user has a role, and may be limited to regions. Each role may do what the one
before it may:

  viewer    looks
  operator  creates, cancels, retries and deletes tasks; profiles and templates
  approver  approves and rejects: what erases disks
  admin     images, boot image, users, everybody's tokens

Only admins of all regions see and change users.`,
		Example: `  lpmos user create anna --role operator --regions dc1,dc2
  lpmos user set anna --role approver
  lpmos user reset-password anna`,
	}
	cmd.AddCommand(a.userList(), a.userShow(), a.userCreate(), a.userSet(), a.userReset(), a.userDelete())
	return cmd
}

func userTable(users []apiclient.User, wide bool) *table {
	columns := []string{"USER", "ROLE", "REGIONS", "STATE", "SESSIONS"}
	if wide {
		columns = append(columns, "CREATED", "CHANGED", "BY")
	}
	t := &table{head: columns}
	for _, u := range users {
		state := "active"
		switch {
		case u.Disabled:
			state = "disabled"
		case u.External != nil && u.External.Barred:
			state = "no group"
		case u.External != nil:
			state = "by " + plain(u.External.Issuer)
		case u.MustChange:
			state = "one-time password"
		}
		row := []string{u.Name, string(u.Role), where(u.Regions), state, fmt.Sprint(u.Sessions)}
		if wide {
			row = append(row, u.CreatedAt.Local().Format(time.DateTime), u.UpdatedAt.Local().Format(time.DateTime), u.UpdatedBy)
		}
		t.row(row...)
	}
	return t
}

func (a *app) userList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List users", Args: exactly(0),
		Long:    "List shows everybody who may sign in.",
		Example: "  lpmos user list -o wide",
		RunE: a.with(func(ctx context.Context, c *apiclient.Client, _ []string) error {
			users, err := c.Users(ctx)
			if err != nil {
				return err
			}
			return a.show(users, func(wide bool) *table { return userTable(users, wide) })
		}),
	}
}

func (a *app) userShow() *cobra.Command {
	return &cobra.Command{
		Use: "show USER", Short: "Show one user", Args: exactly(1), ValidArgsFunction: cobra.NoFileCompletions,
		Long:    "Show prints what one user may do.",
		Example: "  lpmos user show anna",
		RunE: a.with(func(ctx context.Context, c *apiclient.Client, args []string) error {
			u, _, err := c.User(ctx, args[0])
			if err != nil {
				return err
			}
			return a.show(u, func(bool) *table { return userTable([]apiclient.User{u}, true) })
		}),
	}
}

// sayOnce prints a password that is told only now.
func (a *app) sayOnce(u apiclient.User) error {
	return a.show(u, func(bool) *table {
		t := &table{}
		t.field("user", plain(u.Name), strong)
		t.field("role", string(u.Role))
		t.field("regions", where(u.Regions))
		t.field("one-time password", u.OneTimePassword, strong)
		return t
	})
}

func (a *app) userCreate() *cobra.Command {
	var access apiclient.Access
	cmd := &cobra.Command{
		Use: "create USER", Short: "Make a user with a one-time password", Args: exactly(1), ValidArgsFunction: cobra.NoFileCompletions,
		Long: `Create makes a user and prints a one-time password, which is shown only now. Who
signs in with it chooses another and can do nothing else before.`,
		Example: "  lpmos user create anna --role operator --regions dc1",
	}
	roleFlags(cmd, &access)
	cmd.RunE = a.with(func(ctx context.Context, c *apiclient.Client, args []string) error {
		u, err := c.CreateUser(ctx, args[0], access)
		if err != nil {
			return err
		}
		return a.sayOnce(u)
	})
	return cmd
}

func roleFlags(cmd *cobra.Command, access *apiclient.Access) {
	cmd.Flags().StringVar((*string)(&access.Role), "role", string(lpmos.Viewer), "viewer, operator, approver or admin")
	cmd.Flags().StringSliceVar(&access.Regions, "regions", nil, "only in these regions (default: in all)")
}

func (a *app) userSet() *cobra.Command {
	var access apiclient.Access
	var everywhere bool
	cmd := &cobra.Command{
		Use: "set USER", Short: "Change what a user may do", Args: exactly(1), ValidArgsFunction: cobra.NoFileCompletions,
		Long: `Set changes what is named and leaves the rest. It holds from the next request on.
Disabling ends all sessions; tokens do not work meanwhile.`,
		Example: `  lpmos user set anna --role approver
  lpmos user set anna --all-regions
  lpmos user set anna --disabled`,
	}
	roleFlags(cmd, &access)
	cmd.Flags().BoolVar(&everywhere, "all-regions", false, "in all regions")
	cmd.Flags().BoolVar(&access.Disabled, "disabled", false, "cannot sign in; --disabled=false lets them in again")
	cmd.MarkFlagsMutuallyExclusive("regions", "all-regions")
	cmd.RunE = a.with(func(ctx context.Context, c *apiclient.Client, args []string) error {
		was, etag, err := c.User(ctx, args[0])
		if err != nil {
			return err
		}
		changed := cmd.Flags().Changed
		if !changed("role") {
			access.Role = was.Role
		}
		if !changed("disabled") {
			access.Disabled = was.Disabled
		}
		switch {
		case everywhere:
			access.Regions = nil
		case !changed("regions"):
			access.Regions = was.Regions
		}
		u, err := c.SetAccess(ctx, args[0], access, etag)
		if err != nil {
			return err
		}
		return a.show(u, func(bool) *table { return userTable([]apiclient.User{u}, false) })
	})
	return cmd
}

func (a *app) userReset() *cobra.Command {
	return &cobra.Command{
		Use: "reset-password USER", Short: "Make another one-time password", Args: exactly(1), ValidArgsFunction: cobra.NoFileCompletions,
		Long:    "Reset-password ends all sessions of a user and prints a one-time password.",
		Example: "  lpmos user reset-password anna",
		RunE: a.with(func(ctx context.Context, c *apiclient.Client, args []string) error {
			password, err := c.ResetPassword(ctx, args[0])
			if err != nil {
				return err
			}
			u, _, err := c.User(ctx, args[0])
			u.OneTimePassword = password // told even if the rest cannot be
			if err != nil {
				u.Name = args[0]
			}
			return a.sayOnce(u)
		}),
	}
}

func (a *app) userDelete() *cobra.Command {
	return &cobra.Command{
		Use: "delete USER", Short: "Remove a user, with all sessions and tokens", Args: exactly(1), ValidArgsFunction: cobra.NoFileCompletions,
		Long:    "Delete removes a user. What was recorded keeps the name.",
		Example: "  lpmos user delete anna",
		RunE: a.with(func(ctx context.Context, c *apiclient.Client, args []string) error {
			if err := c.DeleteUser(ctx, args[0]); err != nil {
				return err
			}
			return a.say(map[string]any{"name": args[0], "deleted": true}, plain(args[0])+" deleted")
		}),
	}
}

func (a *app) tokenCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "token", Short: "Make and end tokens, with which programs act for you",
		Long: `A token does what its user may, or less, and never more than the user may at the
moment it is used. It expires.`,
		Example: `  lpmos token create ci --role operator --days 365
  lpmos token list`,
	}
	cmd.AddCommand(a.tokenList(), a.tokenCreate(), a.tokenDelete())
	return cmd
}

func (a *app) tokenList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List your tokens; an admin sees all", Args: exactly(0),
		Long:    "List shows tokens without what they are shown as: that is told only once.",
		Example: "  lpmos token list -o wide",
		RunE: a.with(func(ctx context.Context, c *apiclient.Client, _ []string) error {
			tokens, err := c.Tokens(ctx)
			if err != nil {
				return err
			}
			return a.show(tokens, func(bool) *table {
				t := &table{head: []string{"ID", "NAME", "USER", "ROLE", "REGIONS", "EXPIRES", "LAST USED"}, empty: "No tokens. Make one:  lpmos token create NAME"}
				for _, k := range tokens {
					used := "never"
					if !k.UsedAt.IsZero() {
						used = k.UsedAt.Local().Format(time.DateTime)
					}
					t.row(k.ID, k.Name, k.User, string(k.Role), where(k.Regions), k.ExpiresAt.Local().Format(time.DateOnly), used)
				}
				return t
			})
		}),
	}
}

func (a *app) tokenCreate() *cobra.Command {
	var n apiclient.NewToken
	var days int
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Make a token", Args: exactly(1), ValidArgsFunction: cobra.NoFileCompletions,
		Long: `Create prints a token, which is shown only now. Give it to a program as
LPMOS_TOKEN. One that is made with a token lives no longer than that.`,
		Example: "  lpmos token create ci --role viewer --regions dc1 --days 365",
	}
	cmd.Flags().StringVar((*string)(&n.Role), "role", "", "at most yours (default: yours)")
	cmd.Flags().StringSliceVar(&n.Regions, "regions", nil, "only in these regions (default: in all of yours)")
	cmd.Flags().IntVar(&days, "days", 0, "how long it lives, 366 at most (default: 90, or as long as what makes it)")
	cmd.RunE = a.with(func(ctx context.Context, c *apiclient.Client, args []string) error {
		n.Name, n.ExpiresIn = args[0], int64(days)*24*3600
		t, err := c.CreateToken(ctx, n)
		if err != nil {
			return err
		}
		return a.show(t, func(bool) *table {
			out := &table{}
			out.field("id", t.ID)
			out.field("name", plain(t.Name))
			out.field("role", string(t.Role))
			out.field("regions", where(t.Regions))
			out.field("expires", t.ExpiresAt.Local().Format(time.DateOnly))
			out.field("token", t.Token, strong)
			return out
		})
	})
	return cmd
}

func (a *app) tokenDelete() *cobra.Command {
	return &cobra.Command{
		Use: "delete ID", Short: "End a token", Args: exactly(1), ValidArgsFunction: cobra.NoFileCompletions,
		Long:    "Delete ends a token at once; its id is in `lpmos token list`.",
		Example: "  lpmos token delete 0a1b2c3d4e5f6071",
		RunE: a.with(func(ctx context.Context, c *apiclient.Client, args []string) error {
			if err := c.DeleteToken(ctx, args[0]); err != nil {
				return err
			}
			return a.say(map[string]any{"id": args[0], "deleted": true}, plain(args[0])+" deleted")
		}),
	}
}
