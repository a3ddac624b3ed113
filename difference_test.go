package lpmos_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lpmos/lpmos"
)

func TestDiffHardware(t *testing.T) {
	yes, no := true, false
	const mac2 = "52:54:00:00:00:02"
	for name, tt := range map[string]struct {
		edit func(*lpmos.Hardware)
		want []lpmos.Difference
	}{
		"nothing": {func(*lpmos.Hardware) {}, nil},
		"what cannot be told apart": {func(h *lpmos.Hardware) {
			h.Disks[0], h.Disks[1] = h.Disks[1], h.Disks[0]
			h.NICs[0], h.NICs[1] = h.NICs[1], h.NICs[0]
			h.Disks[0].Device, h.NICs[0].Name = "/dev/sdx", "eth7"
			h.Disks[1].Content = lpmos.Content{}
			h.Kernel, h.Agent, h.BootMAC, h.NICs[0].Boot, h.NICs[1].Boot = "7.0", "v9", lpmos.MustMAC(mac2), true, false
			h.System.UUID = strings.ToUpper(h.System.UUID)
			h.Memory.TotalBytes += 32 << 20
			h.Disks = h.Disks[:3] // the stick
		}, nil},
		"a disk replaced": {func(h *lpmos.Hardware) { h.Disks[0].Serial, h.Disks[0].Model = "N9", "P5" }, []lpmos.Difference{
			{Component: "disk", Item: "N0", Before: "960 GB"},
			{Component: "disk", Item: "N9", After: "960 GB P5"},
		}},
		"a disk's size, firmware and write protection": {func(h *lpmos.Hardware) {
			h.Disks[1].SizeBytes, h.Disks[1].Firmware, h.Disks[1].ReadOnly = 240*gb, "B2", true
		}, []lpmos.Difference{
			{Component: "disk", Item: "S0", Field: "size", Before: "480 GB", After: "240 GB"},
			{Component: "disk", Item: "S0", Field: "firmware", After: "B2"},
			{Component: "disk", Item: "S0", Field: "read_only", Before: "no", After: "yes"},
		}},
		"a disk that is a little smaller": {func(h *lpmos.Hardware) { h.Disks[1].SizeBytes -= 512 }, []lpmos.Difference{
			{Component: "disk", Item: "S0", Field: "size", Before: "480000000000 B", After: "479999999488 B"},
		}},
		"a disk without a name of its own": {func(h *lpmos.Hardware) { h.Disks = append(h.Disks, lpmos.Disk{Device: "/dev/vdb", SizeBytes: gb}) }, []lpmos.Difference{
			{Component: "disk", Item: "/dev/vdb", After: "1 GB"},
		}},
		"two disks of one serial number": {func(h *lpmos.Hardware) { h.Disks = append(h.Disks, h.Disks[1]) }, []lpmos.Difference{
			{Component: "disk", Item: "S0 #2", After: "480 GB"},
		}},
		"a NIC replaced": {func(h *lpmos.Hardware) {
			h.NICs[1] = lpmos.NIC{Name: "ens3", MAC: lpmos.MustMAC("52:54:00:00:00:09"), Driver: "ice"}
		}, []lpmos.Difference{
			{Component: "nic", Item: mac2, Before: "eno2"},
			{Component: "nic", Item: "52:54:00:00:00:09", After: "ens3 ice"},
		}},
		"links": {func(h *lpmos.Hardware) {
			h.NICs[0].Link, h.NICs[0].SpeedMbps = true, 25000
			h.NICs[1].Link, h.NICs[1].SpeedMbps = true, 100
		}, []lpmos.Difference{
			{Component: "nic", Item: "52:54:00:00:00:01", Field: "link", Before: "down", After: "25 Gbit/s"},
			{Component: "nic", Item: mac2, Field: "link", Before: "down", After: "100 Mbit/s"},
		}},
		"firmware": {func(h *lpmos.Hardware) {
			h.BIOS, h.BootMode, h.SecureBoot = lpmos.BIOS{Version: "2.1", Date: "2026-01-01"}, "bios", &yes
		}, []lpmos.Difference{
			{Component: "firmware", Field: "version", After: "2.1"},
			{Component: "firmware", Field: "date", After: "2026-01-01"},
			{Component: "firmware", Field: "boot_mode", Before: "uefi", After: "bios"},
			{Component: "firmware", Field: "secure_boot", Before: "off", After: "on"},
		}},
		"processors and memory": {func(h *lpmos.Hardware) {
			h.CPU.Model, h.CPU.Sockets, h.CPU.Cores, h.CPU.Threads = "Xeon 6", 2, 64, 128
			h.Memory.TotalBytes = 96 << 30
		}, []lpmos.Difference{
			{Component: "cpu", Field: "model", After: "Xeon 6"},
			{Component: "cpu", Field: "sockets", Before: "0", After: "2"},
			{Component: "cpu", Field: "cores", Before: "0", After: "64"},
			{Component: "cpu", Field: "threads", Before: "0", After: "128"},
			{Component: "memory", Field: "size", Before: "64 GiB", After: "96 GiB"},
		}},
		"serial numbers": {func(h *lpmos.Hardware) { h.System.Serial, h.Board.Serial, h.Chassis.Serial = "SRV2", "", "CH1" }, []lpmos.Difference{
			{Component: "system", Field: "serial", Before: "SRV1", After: "SRV2"},
			{Component: "board", Field: "serial", Before: "BRD1"},
			{Component: "chassis", Field: "serial", After: "CH1"},
		}},
	} {
		before, after := server(), server()
		before.SecureBoot, after.SecureBoot = &no, &no
		before.Memory.TotalBytes, after.Memory.TotalBytes = 64<<30, 64<<30
		tt.edit(after)
		if diff := cmp.Diff(tt.want, lpmos.DiffHardware(before, after)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		// Told the other way round, the same things changed back.
		back := lpmos.DiffHardware(after, before)
		if len(back) != len(tt.want) {
			t.Errorf("%s backwards = %v; want %d differences", name, back, len(tt.want))
		}
	}
	if d := lpmos.DiffHardware(nil, server()); d != nil {
		t.Errorf("a machine seen for the first time differs in %v", d)
	}
}
