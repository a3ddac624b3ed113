package lpmos_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/lpmos/lpmos"
)

// FuzzAnswers adds anything to each kind of an installer's answers: what is
// taken can be rendered for a machine, and what LPMOS says in the file stays in
// it, line by line.
func FuzzAnswers(f *testing.F) {
	for kind, text := range additions {
		f.Add(slices.Index(answerKinds, kind), text, "A1")
	}
	f.Add(0, "d-i a/b string \\\n x", `it's "A" % $(x) #1`)
	f.Add(1, "network --bootproto=static\nrepo --name \"x y\"\n%packages --nocore\n-@x\n%end\n", "%end")
	f.Add(2, `{"apt":{}}`, "\u2028")
	var own [3][]string
	for i, kind := range answerKinds {
		task := installerTask(kind)
		task.TemplateText = nil
		own[i] = strings.Split(answersOf(f, lpmos.NewPlan(task, server(), installer(kind))), "\n")
	}
	f.Fuzz(func(t *testing.T, kind int, text, asset string) {
		if kind < 0 || kind >= len(answerKinds) {
			return
		}
		name := answerKinds[kind]
		template := lpmos.Template{Name: "x", Kind: name, Text: text}
		if _, err := template.Normalize(); err != nil {
			return
		}
		task, h := installerTask(name), server()
		task.TemplateText.Text, h.Chassis.AssetTag = text, asset
		p := lpmos.NewPlan(task, h, installer(name))
		if p.Problem != "" || name == lpmos.TemplateAutoinstall {
			return // JSON is compared in TestAutoinstallIsOneDocument
		}
		lines := strings.Split(answersOf(t, p), "\n")
		for _, want := range own[kind] {
			if !slices.Contains(lines, want) {
				t.Fatalf("%q with the asset %q takes away the line %q", text, asset, want)
			}
		}
	})
}

// FuzzManifest reads anything as an image's manifest: of one that is valid, every
// chunk and every range lies within the image.
func FuzzManifest(f *testing.F) {
	good := lpmos.ImageManifest{Format: lpmos.FormatInstaller, OS: "debian", Version: "12", Arch: "amd64", Installer: installer(lpmos.TemplatePreseed).Installer}
	f.Add(lpmos.CanonicalJSON(good))
	f.Add([]byte(`{"format":"disk","os":"debian","version":"12","arch":"amd64","size_bytes":4096,"chunks":[{"offset":0,"bytes":4096,"stored_offset":0,"stored_bytes":10,"sha256":"` + strings.Repeat("a", 64) +
		`"}],"used_bytes":4096,"pack":{"sha256":"` + strings.Repeat("b", 64) + `","bytes":10}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var m lpmos.ImageManifest
		if lpmos.UnmarshalJSON(body, &m) != nil || m.Validate() != nil {
			return
		}
		_, _ = m.Blobs(), m.RootBytes()
		for _, c := range m.Chunks {
			if c.Offset < 0 || c.Bytes <= 0 || c.Offset+c.Bytes > m.SizeBytes || c.StoredOffset < 0 || c.StoredBytes <= 0 || c.StoredOffset+c.StoredBytes > m.Pack.Bytes {
				t.Fatalf("chunk %+v of an image of %d bytes in %d", c, m.SizeBytes, m.Pack.Bytes)
			}
		}
	})
}

// FuzzHardware makes a plan for whatever an agent says its machine is: the same
// one each time, and never for a disk that is not to be written.
func FuzzHardware(f *testing.F) {
	f.Add(lpmos.CanonicalJSON(server()))
	f.Add([]byte(`{"boot_mode":"bios","disks":[{"device":"/dev/sda","size_bytes":9223372036854775807,"serial":"\u0000"},{"serial":"\u0000"}],"nics":null}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var h lpmos.Hardware
		if lpmos.UnmarshalJSON(body, &h) != nil {
			return
		}
		_, _ = h.Digest(), lpmos.Observe(&h)
		for _, layout := range []*lpmos.Layout{nil, {Preset: "raid1-lvm"}, {Preset: "xfs"}} {
			tk := task()
			tk.Layout = layout
			p := lpmos.NewPlan(tk, &h, treeImage())
			if again := lpmos.NewPlan(tk, &h, treeImage()); again.Digest != p.Digest || again.Problem != p.Problem {
				t.Fatal("the same machine gets another plan the second time")
			}
			if p.Problem != "" {
				continue
			}
			for _, d := range p.Effect.Disks() {
				disk, err := h.Disk(d.Disk)
				if err != nil || !disk.Installable() {
					t.Fatalf("the plan writes %+v: %v", d.Disk, err)
				}
				var sum int64
				for _, part := range d.Partitions {
					sum += part.SizeBytes
				}
				if sum > disk.SizeBytes {
					t.Fatalf("%d bytes of partitions on a disk of %d", sum, disk.SizeBytes)
				}
			}
		}
	})
}

// FuzzWords reads the short texts that people, files and machines give: what is
// taken is written as it was meant, and read again as the same.
func FuzzWords(f *testing.F) {
	for _, s := range []string{"00-1A-2B-3C-4D-5E", "001a.2b3c.4d5e", "1.5 TiB", "web@3", edKey, "sha256:" + strings.Repeat("ab", 32), `{"disk-passphrase":{"value":"x","salt":"AAAA"}}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if m, err := lpmos.ParseMAC(s); err == nil {
			if again, err := lpmos.ParseMAC(m.String()); err != nil || again != m || m.IsZero() {
				t.Fatalf("the MAC address %q is read as %s, and that as %s, %v", s, m, again, err)
			}
		}
		if n, err := lpmos.ParseSize(s); err == nil && (n < 0 || n%(1<<20) != 0) {
			t.Fatalf("the size %q has %d bytes", s, n)
		}
		if name, version, err := lpmos.ParseRef("profile", s); err == nil && (version < 0 || !lpmos.ValidName(name)) {
			t.Fatalf("%q refers to %q, version %d", s, name, version)
		}
		if k, err := lpmos.ParseHostKey(s); err == nil {
			if again, err := lpmos.ParseHostKey(k.Type + " " + k.Key); err != nil || again != k {
				t.Fatalf("the key %q is read as %+v, and that as %+v, %v", s, k, again, err)
			}
		}
		if d, err := lpmos.TrimDigest(s); err == nil && !lpmos.ValidDigest(d) {
			t.Fatalf("%q is the digest %q", s, d)
		}
		if lpmos.ValidSSHKey(s) && strings.ContainsAny(s, "\n\r\x00") {
			t.Fatalf("%q is taken for one key", s)
		}
		_ = lpmos.CheckPasswordHash(s)
		if set, err := lpmos.ParseSecretSet([]byte(s)); err == nil {
			if _, err := lpmos.ParseSecretSet(set.Expose()); err != nil {
				t.Fatalf("secrets cannot be read again: %v", err)
			}
		}
	})
}
