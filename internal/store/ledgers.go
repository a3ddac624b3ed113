package store

import (
	"crypto/ed25519"
	"fmt"
	"slices"
	"time"

	"github.com/lpmos/lpmos"
)

// What of each kind of value an audit entry shows. Password hashes, hashes of
// credentials, and texts in which people may have put secrets have no field
// here, or are named by their digest.

func digested(s string) named { return named{lpmos.DigestBytes([]byte(s)), len(s)} }

var users = ledger[lpmos.User]{
	noun:    "user",
	subject: func(_ Key, u *lpmos.User) string { return "user " + u.Name },
	show: func(_ Key, u *lpmos.User) any {
		return struct {
			Role       lpmos.Role      `json:"role"`
			Regions    []string        `json:"regions,omitzero"`
			MustChange bool            `json:"must_change_password"`
			Disabled   bool            `json:"disabled"`
			Epoch      int             `json:"session_epoch"`      // grows with every password
			External   *lpmos.External `json:"external,omitempty"` // and when they last signed in with it
		}{u.Role, u.Regions, u.MustChange, u.Disabled, u.Epoch, u.External}
	},
	action: func(was, now *lpmos.User) string {
		if was != nil && now != nil && was.Password != now.Password {
			return "user.password"
		}
		return ""
	},
}

var tokens = ledger[lpmos.APIToken]{
	noun:    "token",
	subject: func(_ Key, t *lpmos.APIToken) string { return fmt.Sprintf("token %s of %s", t.Name, t.User) },
	show: func(k Key, t *lpmos.APIToken) any {
		return struct {
			ID        string     `json:"id"` // as lists show it
			Role      lpmos.Role `json:"role"`
			Regions   []string   `json:"regions,omitzero"`
			ExpiresAt time.Time  `json:"expires_at"`
		}{k.Name[:16], t.Role, t.Regions, t.ExpiresAt}
	},
}

var signIns = ledger[lpmos.SignIn]{
	noun:    "session",
	subject: func(_ Key, s *lpmos.SignIn) string { return "session of " + s.User },
	show: func(k Key, s *lpmos.SignIn) any {
		return struct {
			ID        string    `json:"id"`
			CreatedAt time.Time `json:"created_at"`
			From      string    `json:"from,omitempty"`
			Agent     string    `json:"agent,omitempty"`
		}{k.Name[:16], s.CreatedAt, s.From, s.Agent}
	},
	action: func(_, _ *lpmos.SignIn) string { return "session.end" },
}

var identities = ledger[Identity]{
	noun:    "region",
	subject: func(k Key, _ *Identity) string { return "region " + k.Region },
	show: func(_ Key, id *Identity) any {
		type certificate struct {
			Serial   string    `json:"serial"`
			Host     string    `json:"host,omitempty"`
			NotAfter time.Time `json:"not_after"`
		}
		certificates := []certificate{}
		for _, c := range id.Certificates {
			certificates = append(certificates, certificate{c.Serial, c.Host, c.NotAfter})
		}
		return struct {
			Enrolled     int           `json:"enrolled"` // how often
			Certificates []certificate `json:"certificates"`
			RotateAfter  time.Time     `json:"rotate_after,omitzero"`
			RevokedAt    time.Time     `json:"revoked_at,omitzero"`
			Withdrawn    int           `json:"withdrawn,omitzero"` // tokens up to this one
		}{id.Users, certificates, id.RotateAfter, id.RevokedAt, id.Withdrawn}
	},
	action: func(was, now *Identity) string {
		switch {
		case was == nil || now == nil:
			return "region.certificate"
		case len(now.Certificates) == 0 && len(was.Certificates) > 0, now.Withdrawn > was.Withdrawn:
			return "region.revoke"
		case !now.RotateAfter.Equal(was.RotateAfter):
			return "region.rotate"
		}
		return "region.certificate"
	},
}

var images = ledger[lpmos.Image]{
	noun:    "image",
	subject: func(_ Key, i *lpmos.Image) string { return "image " + i.Name() },
	show: func(_ Key, i *lpmos.Image) any {
		v := struct {
			Digest      string   `json:"digest"`
			Title       string   `json:"title"`
			Format      string   `json:"format"`
			SizeBytes   int64    `json:"size_bytes"`
			StoredBytes int64    `json:"stored_bytes"`
			CloudInit   bool     `json:"cloud_init"`
			Source      string   `json:"source,omitempty"` // SHA-256 of what was imported
			Signer      string   `json:"signer,omitempty"`
			Badges      []string `json:"badges,omitempty"`
			Key         string   `json:"key"` // that signed the entry of the catalogue
		}{i.Digest, i.Title, i.Format, i.SizeBytes, i.StoredBytes, i.CloudInit, "", "", nil, i.Signature.KeyID}
		if i.Source != nil {
			v.Source, v.Signer = i.Source.SHA256, i.Source.Signer
		}
		for _, b := range i.Badges {
			v.Badges = append(v.Badges, fmt.Sprintf("%s: %v", b.Firmware, b.Passed))
		}
		return v
	},
}

var profiles = ledger[lpmos.Profile]{
	noun:    "profile",
	subject: func(_ Key, p *lpmos.Profile) string { return "profile " + p.Name },
	show: func(_ Key, p *lpmos.Profile) any {
		type system struct {
			Users    []string       `json:"users,omitempty"` // with ! who may do everything
			Timezone string         `json:"timezone,omitempty"`
			Locale   string         `json:"locale,omitempty"`
			Keyboard string         `json:"keyboard,omitempty"`
			Network  *lpmos.Network `json:"network,omitempty"`
			NTP      []string       `json:"ntp,omitempty"`
			Packages []string       `json:"packages,omitempty"`
			Kernel   []string       `json:"kernel_args,omitempty"`
			Scripts  []named        `json:"scripts,omitempty"`
		}
		v := struct {
			Version     int           `json:"version"`
			Description string        `json:"description,omitempty"`
			OSType      string        `json:"os_type,omitempty"`
			OSVersion   string        `json:"os_version,omitempty"`
			Arch        string        `json:"arch,omitempty"`
			Hostname    string        `json:"hostname_pattern,omitempty"`
			SSHKeys     []string      `json:"ssh_keys,omitempty"`
			Verify      *bool         `json:"verify,omitempty"`
			Notes       string        `json:"notes,omitempty"`
			Template    string        `json:"template,omitempty"`
			System      *system       `json:"system,omitempty"`
			Layout      *lpmos.Layout `json:"layout,omitempty"`
		}{p.Version, p.Description, p.OSType, p.OSVersion, p.Arch, p.Hostname, p.SSHKeys, p.Verify, p.Notes, p.Template, nil, p.Layout}
		if s := p.System; s != nil {
			v.System = &system{nil, s.Timezone, s.Locale, s.Keyboard, s.Network, s.NTP, s.Packages, s.Kernel, nil}
			for _, u := range s.Users {
				name := u.Name
				if u.Sudo {
					name = "!" + name
				}
				v.System.Users = append(v.System.Users, name)
			}
			for _, one := range s.Scripts {
				v.System.Scripts = append(v.System.Scripts, digested(one.Name+"\n"+one.Text))
			}
		}
		return v
	},
}

var templates = ledger[lpmos.Template]{
	noun:    "template",
	subject: func(_ Key, t *lpmos.Template) string { return "template " + t.Name },
	show: func(_ Key, t *lpmos.Template) any {
		return struct {
			Version     int    `json:"version"`
			Kind        string `json:"kind"`
			Description string `json:"description,omitempty"`
			Text        named  `json:"text"`
		}{t.Version, t.Kind, t.Description, digested(t.Text)}
	},
}

var globals = ledger[Global]{
	noun:    "config",
	subject: func(Key, *Global) string { return "site" },
	show: func(_ Key, g *Global) any {
		type bootImage struct {
			Version    string `json:"version"`
			Kernel     string `json:"kernel"` // SHA-256
			Initrd     string `json:"initrd"`
			KernelArgs string `json:"kernel_args"`
			Files      string `json:"files"` // digest of the list
		}
		v := struct {
			PermitsPerMinute int                  `json:"permits_per_minute"`
			Protected        []string             `json:"protected"`
			Approvals        lpmos.ApprovalPolicy `json:"approvals,omitzero"`
			BootImage        *bootImage           `json:"boot_image,omitempty"`
			Keys             []string             `json:"keys"`
			Hosts            []string             `json:"hosts"`
		}{g.PermitsPerMinute, append([]string{}, g.Protected...), g.Approvals, nil, []string{}, []string{}}
		if b := g.BootImage; b != nil {
			v.BootImage = &bootImage{b.Version, b.Kernel.SHA256, b.Initrd.SHA256, b.KernelArgs, lpmos.DigestOf(b.Files)}
		}
		for _, k := range g.Keys {
			v.Keys = append(v.Keys, lpmos.KeyID(ed25519.PublicKey(k)))
		}
		for name := range g.Hosts {
			v.Hosts = append(v.Hosts, name)
		}
		slices.Sort(v.Hosts)
		return v
	},
	action: func(was, now *Global) string {
		if was == nil {
			was = &Global{}
		}
		images := lpmos.DigestOf(was.BootImage) != lpmos.DigestOf(now.BootImage)
		limits := lpmos.DigestOf(was.Limits) != lpmos.DigestOf(now.Limits)
		approvals := lpmos.DigestOf(was.Approvals) != lpmos.DigestOf(now.Approvals)
		rest := lpmos.DigestOf([]any{was.Keys, was.Hosts}) != lpmos.DigestOf([]any{now.Keys, now.Hosts})
		switch {
		case images && !limits && !approvals && !rest:
			return "bootimage.publish"
		case limits && !images && !approvals && !rest:
			return "limits.set"
		case approvals && !images && !limits && !rest:
			return "policy.set"
		}
		return "config.update"
	},
}

var stops = ledger[lpmos.Stop]{
	noun:    "stop",
	subject: func(Key, *lpmos.Stop) string { return "emergency stop" },
	show: func(_ Key, s *lpmos.Stop) any {
		return struct {
			Reason string `json:"reason"`
		}{s.Reason}
	},
	action: func(_, now *lpmos.Stop) string {
		if now == nil {
			return "stop.end"
		}
		return "stop.begin"
	},
}
