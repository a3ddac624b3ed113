package main

import (
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
)

var copyRate = regexp.MustCompile(`BenchmarkCopy/(\w+)\S*\s.*?([\d.]+) MB/s`)

func (b *bench) copies() error {
	out, err := exec.CommandContext(b.ctx, "go", "test", "-run", "^$", "-bench", "BenchmarkCopy", "-benchtime", "3x", "-count", "3", "./internal/agent/install").CombinedOutput()
	if err != nil {
		return fmt.Errorf("run benchmark: %w\n%s", err, out)
	}
	rates := map[string][]float64{}
	for _, m := range copyRate.FindAllSubmatch(out, -1) {
		v, err := strconv.ParseFloat(string(m[2]), 64)
		if err != nil {
			return err
		}
		rates[string(m[1])] = append(rates[string(m[1])], v)
	}
	rows := [][]string{{"way", "lands", "all runs"}}
	for _, way := range []struct{ key, name string }{{"agent", "agent (every chunk verified)"}, {"shell", "curl | zstd -d | dd"}} {
		v := rates[way.key]
		if len(v) == 0 {
			return fmt.Errorf("no figures of %s in\n%s", way.key, out)
		}
		slices.Sort(v)
		rows = append(rows, []string{way.name, fmt.Sprintf("%.0f MB/s", v[len(v)/2]), fmt.Sprint(v)})
	}
	table("Image to disk on this host", "BenchmarkCopy: 256 MiB into a file, with fsync, over HTTP on loopback; median of 3 runs of 3.", rows...)
	return nil
}

var importRate = regexp.MustCompile(`BenchmarkImport/(\w+)-(\d+MB)\S*\s.*?([\d.]+) MB/s\s+([\d.]+) peak-MB`)

func (b *bench) imports() error {
	out, err := exec.CommandContext(b.ctx, "go", "test", "-run", "^$", "-bench", "BenchmarkImport", "-benchtime", "2x", "-timeout", "20m", "./internal/imageimport").CombinedOutput()
	if err != nil {
		return fmt.Errorf("run benchmark: %w\n%s", err, out)
	}
	rows := [][]string{{"format", "content", "imported", "memory at most"}}
	for _, m := range importRate.FindAllSubmatch(out, -1) {
		rows = append(rows, []string{string(m[1]), string(m[2]), string(m[3]) + " MB/s", string(m[4]) + " MB"})
	}
	if len(rows) == 1 {
		return fmt.Errorf("no figures in\n%s", out)
	}
	table("Import of an image", "BenchmarkImport: a disk in Ubuntu's layout, half of whose content compresses; verified, looked into, packed and hashed.", rows...)
	return nil
}
