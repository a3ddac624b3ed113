package apiclient

import (
	"context"
	"net/http"
	"net/url"
	"strconv"

	"github.com/lpmos/lpmos"
)

// MachineList is a page of machines.
type MachineList struct {
	Machines   []lpmos.Machine            `json:"machines"`
	Total      int                        `json:"total"`
	Counts     map[lpmos.MachineState]int `json:"counts"`
	NextCursor string                     `json:"next_cursor"`
	Rev        int64                      `json:"rev"`
}

// Machines reads a page of machines; query is as the API has it.
func (c *Client) Machines(ctx context.Context, query url.Values) (l MachineList, err error) {
	err = c.get(ctx, v1+"/machines?"+query.Encode(), &l)
	return l, err
}

// Machine reads one machine by any of its addresses.
func (c *Client) Machine(ctx context.Context, mac lpmos.MAC) (m lpmos.Machine, err error) {
	err = c.get(ctx, v1+"/machines/"+url.PathEscape(mac.String()), &m)
	return m, err
}

// UsedBy is who uses a profile or a template.
type UsedBy struct {
	Tasks    int      `json:"tasks"`
	Live     []string `json:"live_tasks"`
	Profiles []string `json:"profiles,omitempty"`
}

// Profile is a profile with who uses it.
type Profile struct {
	lpmos.Profile
	UsedBy *UsedBy `json:"used_by,omitempty"`
}

// Template is a template with who uses it.
type Template struct {
	lpmos.Template
	UsedBy *UsedBy `json:"used_by,omitempty"`
}

// Profiles lists all.
func (c *Client) Profiles(ctx context.Context) ([]Profile, error) {
	var out struct {
		Profiles []Profile `json:"profiles"`
	}
	err := c.get(ctx, v1+"/profiles", &out)
	return out.Profiles, err
}

// Profile reads one.
func (c *Client) Profile(ctx context.Context, name string) (p Profile, err error) {
	err = c.get(ctx, v1+"/profiles/"+url.PathEscape(name), &p)
	return p, err
}

// PutProfile makes the version after based, which is 0 for a new profile.
func (c *Client) PutProfile(ctx context.Context, p lpmos.Profile, based int) (out Profile, err error) {
	p.Version = based
	err = c.send(ctx, http.MethodPut, v1+"/profiles/"+url.PathEscape(p.Name), wireProfile(p), &out)
	return out, err
}

// askedProfile is a profile on its way to the control plane: there, and nowhere
// else, the password hashes of its accounts are what they are.
type askedProfile struct {
	lpmos.Profile
	System *askedSetup `json:"system,omitempty"`
}

type askedSetup struct {
	lpmos.Setup
	Users []askedAccount `json:"users,omitempty"`
}

type askedAccount struct {
	lpmos.Account
	PasswordHash string `json:"password_hash,omitempty"`
}

func wireProfile(p lpmos.Profile) askedProfile {
	w := askedProfile{Profile: p}
	if p.System != nil {
		w.System = &askedSetup{Setup: *p.System}
		for _, u := range p.System.Users {
			w.System.Users = append(w.System.Users, askedAccount{u, u.PasswordHash.Reveal()})
		}
	}
	return w
}

// DeleteProfile removes version based of a profile; 0 stands for any.
func (c *Client) DeleteProfile(ctx context.Context, name string, based int) error {
	return c.do(ctx, http.MethodDelete, v1+"/profiles/"+url.PathEscape(name), atVersion(based), nil, nil)
}

// Templates lists all.
func (c *Client) Templates(ctx context.Context) ([]Template, error) {
	var out struct {
		Templates []Template `json:"templates"`
	}
	err := c.get(ctx, v1+"/templates", &out)
	return out.Templates, err
}

// Template reads one.
func (c *Client) Template(ctx context.Context, name string) (t Template, err error) {
	err = c.get(ctx, v1+"/templates/"+url.PathEscape(name), &t)
	return t, err
}

// PutTemplate makes the version after based, which is 0 for a new template.
func (c *Client) PutTemplate(ctx context.Context, t lpmos.Template, based int) (out Template, err error) {
	t.Version = based
	err = c.send(ctx, http.MethodPut, v1+"/templates/"+url.PathEscape(t.Name), t, &out)
	return out, err
}

// DeleteTemplate removes version based of a template; 0 stands for any.
func (c *Client) DeleteTemplate(ctx context.Context, name string, based int) error {
	return c.do(ctx, http.MethodDelete, v1+"/templates/"+url.PathEscape(name), atVersion(based), nil, nil)
}

// Preview is a version of a template as a machine would get it.
type Preview struct {
	Template string `json:"template"`
	Version  int    `json:"version"`
	Kind     string `json:"kind"`
	Text     string `json:"text"`
}

// Preview renders a template for a task, or for a sample machine with "".
func (c *Client) Preview(ctx context.Context, name, taskID string) (p Preview, err error) {
	err = c.send(ctx, http.MethodPost, v1+"/templates/"+url.PathEscape(name)+"/preview", map[string]string{"task_id": taskID}, &p)
	return p, err
}

// atVersion is ifMatch for what has versions; 0 is any.
func atVersion(version int) http.Header {
	if version == 0 {
		return nil
	}
	return ifMatch(`"` + strconv.Itoa(version) + `"`)
}
