package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/apiclient"
	"github.com/lpmos/lpmos/internal/bootimage"
	"github.com/lpmos/lpmos/internal/lab"
	"github.com/lpmos/lpmos/internal/osimage"
	"github.com/lpmos/lpmos/internal/region"
	"github.com/lpmos/lpmos/internal/service"
	wholesite "github.com/lpmos/lpmos/internal/site"
	"github.com/lpmos/lpmos/test/fixture"
)

// phaseTable finds what `lpmos lab up --auto` prints of each machine.
var phaseTable = regexp.MustCompile(`(?m)^lab-\d+ .*\n(?: .*\n)+`)

func (b *bench) phases() error {
	cmd := exec.CommandContext(b.ctx, b.path("lpmos"), "lab", "up", "--os", "tiny", "--auto", "--firmware", "bios,uefi", "--machines", "2",
		"--agent", b.path("agent"), "--cache-dir", b.cache, "--keep", filepath.Join(b.dir, "lab"))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("lab up: %w\n%s", err, out)
	}
	table("Virtual machines from power-on to their own system",
		"lpmos lab up --os tiny --auto --firmware bios,uefi --machines 2: two at once; emulated processors (TCG) unless the host has KVM.")
	for _, t := range phaseTable.FindAll(out, -1) {
		fmt.Printf("%s\n", t)
	}
	return nil
}

var (
	guestLine = regexp.MustCompile(`msg=bench image=(\w+) way=(\w+) bytes=(\d+) ms=(\d+)`)
	guestEnd  = regexp.MustCompile(`msg=bench-(over|failed.*)`)
)

// guest boots a machine whose /init is test/bench/guest, over the network as
// any machine, and reads what it measured.
func (b *bench) guest() error {
	ctx, cancel := context.WithTimeout(b.ctx, 25*time.Minute)
	defer cancel()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	images := b.path("guest-image")
	// One of which only half compresses, as if it were full of packed files, and
	// the system that make lab installs.
	hard, err := fixture.Image(ctx, images, "bench", "1", "Bench 1", 96<<20)
	if err != nil {
		return err
	}
	debian, err := osimage.Build(ctx, osimage.Config{Name: "debian-12", OutDir: images, CacheDir: b.cache}, log, nil)
	if err != nil {
		return err
	}
	if err := b.build("guest", "./test/bench/guest", "-X main.manifests="+hard.Digest+","+debian.Digest); err != nil {
		return err
	}
	bootDir := b.path("guest-boot")
	boot, _, err := bootimage.Build(ctx, bootimage.Config{OutDir: bootDir, AgentPath: b.path("guest"), CacheDir: b.cache, Version: "bench"}, log, nil)
	if err != nil {
		return err
	}
	network, err := lab.NewNetwork(ctx, lab.Config{Dir: b.path("machines")}, log)
	if err != nil {
		return err
	}
	defer network.Close()
	cfg := wholesite.Config{DataDir: b.path("guest-site"), Region: region.Config{
		RegionID: "lab", Interface: lab.DefaultSegment.Bridge, DHCP: "server", DHCPRange: "10.77.0.100-10.77.0.199", Do: network.Do,
	}}
	cfg.ControlPlane.ListenAddr = "127.0.0.1:0"
	s, err := wholesite.New(ctx, cfg, log)
	if err != nil {
		return err
	}
	return service.Run(ctx, s.Run, func(ctx context.Context) error {
		api, err := apiclient.New(s.ControlPlane.URL(), nil)
		if err != nil {
			return err
		}
		api.UseToken(s.ControlPlane.LocalToken("bench"))
		if err := (&site{api: api}).online(ctx); err != nil {
			return err
		}
		if err := fixture.PutBootImage(ctx, api, bootDir, boot); err != nil {
			return err
		}
		for _, img := range []lpmos.Image{hard, debian} {
			if err := fixture.PutImage(ctx, api, images, img); err != nil {
				return err
			}
		}
		tools, err := toolsDisk(ctx, b.path("guest-tools"))
		if err != nil {
			return err
		}
		rows := [][]string{{"processors", "image", "way", "lands (median)", "milliseconds"}}
		for cpus := 1; cpus <= 2; cpus++ {
			mac := lpmos.MAC{0x52, 0x54, 0, 0x77, 2, byte(cpus)}
			if _, err := api.CreateTask(ctx, lpmos.Spec{RegionID: "lab", TargetMAC: mac, OSType: hard.OS, OSVersion: hard.Version}, ""); err != nil {
				return err
			}
			name := fmt.Sprintf("bench-%d", cpus)
			vm, err := network.Start(ctx, lab.MachineConfig{Name: name, NICs: []lab.NIC{{MAC: mac}}, CPUs: cpus,
				Disks: []lab.Disk{{Path: b.path(name + ".disk"), SizeBytes: 2 << 30}, {Path: tools}}})
			if err != nil {
				return err
			}
			more, err := readGuest(ctx, vm, cpus, hard, debian)
			vm.PowerOff()
			if err != nil {
				return err
			}
			rows = append(rows, more...)
		}
		table("Image to disk in a virtual machine", "To a virtio disk, with fsync; the same guest by turns, over the region's own boot listener.", rows...)
		return nil
	})
}

// toolsDisk makes an ext4 disk of the programs that the guest compares with: the
// host's, in one directory with their libraries and, as ld.so, what starts them.
func toolsDisk(ctx context.Context, dir string) (string, error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	for _, name := range []string{"curl", "dd", "tee", "sha256sum"} {
		path, err := exec.LookPath(name)
		if err != nil {
			return "", err
		}
		needs, err := fixture.Run(ctx, "ldd", path)
		if err != nil {
			return "", err
		}
		from := map[string]string{name: path}
		for _, lib := range regexp.MustCompile(`/\S+`).FindAllString(needs, -1) {
			to := filepath.Base(lib)
			if strings.HasPrefix(to, "ld-linux") {
				to = "ld.so"
			}
			from[to] = lib
		}
		for to, path := range from {
			if _, err := fixture.Run(ctx, "cp", "-L", path, filepath.Join(dir, to)); err != nil {
				return "", err
			}
		}
	}
	image := dir + ".ext4"
	return image, fixture.Ext4(ctx, image, dir, "tools", fixture.RootUUID, "64M")
}

func readGuest(ctx context.Context, vm *lab.Machine, cpus int, images ...lpmos.Image) (rows [][]string, err error) {
	end, err := vm.Console().WaitFor(ctx, guestEnd)
	if err != nil {
		return nil, err
	}
	type run struct{ image, way string }
	rates, took := map[run][]float64{}, map[run]string{}
	for _, line := range vm.Console().Tail(100) {
		m := guestLine.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		size, err := strconv.ParseFloat(m[3], 64)
		if err != nil {
			return nil, err
		}
		ms, err := strconv.ParseFloat(m[4], 64)
		if err != nil {
			return nil, err
		}
		r := run{m[1], m[2]}
		rates[r] = append(rates[r], size/1e3/ms)
		took[r] += m[4] + " "
	}
	for _, img := range images {
		name := fmt.Sprintf("%s, %s packed to %s", img.OS, lpmos.FormatBytes(img.UsedBytes), lpmos.FormatBytes(img.StoredBytes))
		for _, w := range []struct{ key, name string }{{"agent", "the agent's Copier (every chunk verified)"}, {"pipeline", "curl | zstd -d | dd bs=4M (nothing verified)"}, {"verified", "curl | tee >(sha256sum) | zstd -d | dd bs=4M"}} {
			r := run{img.OS, w.key}
			if len(rates[r]) == 0 {
				return nil, fmt.Errorf("the guest ended with %s and measured %v", end.Text, rates)
			}
			slices.Sort(rates[r])
			rows = append(rows, []string{fmt.Sprint(cpus), name, w.name, fmt.Sprintf("%.1f MB/s", rates[r][len(rates[r])/2]), took[r]})
		}
	}
	return rows, nil
}
