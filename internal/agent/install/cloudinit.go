package install

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"strings"
)

const seedDir = "var/lib/cloud/seed/nocloud/"

// cloudSeed is a NoCloud seed (cloud-init, "NoCloud"). It is JSON, which YAML
// contains; no string of a plan can mean anything else in it. Where the plan
// has user-data of its own, ours becomes vendor-data: cloud-init takes from it
// what the user-data does not say.
func cloudSeed(job *Job) ([]file, error) {
	e := &job.Plan.Effect
	root := map[string]any{"name": "root", "lock_passwd": true}
	user := map[string]any{
		"hostname":          e.Hostname,
		"preserve_hostname": false,
		"manage_etc_hosts":  false,
		"ssh_pwauth":        false,
		"disable_root":      false,
		"users":             []any{"default", root},
	}
	if len(e.SSHKeys) > 0 { // its schema calls an empty list invalid
		user["ssh_authorized_keys"], root["ssh_authorized_keys"] = e.SSHKeys, e.SSHKeys
	}
	if strings.Contains(e.Hostname, ".") {
		user["fqdn"] = e.Hostname
	}
	nics := map[string]any{}
	for i, mac := range e.Network.MACs {
		nics[fmt.Sprintf("nic%d", i)] = map[string]any{
			"match": map[string]any{"macaddress": mac.String()},
			"dhcp4": true,
			// A cable that is not plugged in must not hold the boot up.
			"optional": true,
		}
	}
	ours := seedDir + "user-data"
	var files []file
	if e.UserData != "" {
		ours = seedDir + "vendor-data"
		files = append(files, file{path: seedDir + "user-data", mode: 0o600, text: e.UserData})
	}
	for _, f := range []struct {
		path, head string
		mode       fs.FileMode
		value      any
	}{
		{seedDir + "meta-data", "", 0o644, map[string]any{"instance-id": job.TaskID, "local-hostname": e.Hostname}},
		{ours, "#cloud-config\n", 0o600, user},
		{seedDir + "network-config", "", 0o644, map[string]any{"version": 2, "ethernets": nics}},
		// Without it the first boot asks every cloud there is.
		{"etc/cloud/cloud.cfg.d/99-lpmos.cfg", "", 0o644, map[string]any{"datasource_list": []string{"NoCloud", "None"}}},
	} {
		text, err := json.MarshalIndent(f.value, "", "  ")
		if err != nil {
			return nil, fmt.Errorf("encode %s: %w", f.path, err)
		}
		files = append(files, file{path: f.path, mode: f.mode, text: f.head + string(text) + "\n"})
	}
	return files, nil
}
