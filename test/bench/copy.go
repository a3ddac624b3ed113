package main

import (
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
)

var copyRate = regexp.MustCompile(`BenchmarkCopy/(\w+)-(\w+)-\d+\s.*?([\d.]+) MB/s(?:\s+([\d.]+) peak-MB)?`)

func (b *bench) copies() error {
	out, err := exec.CommandContext(b.ctx, "go", "test", "-run", "^$", "-bench", "BenchmarkCopy", "-benchtime", "3x", "-count", "3", "-timeout", "20m", "./internal/agent/install").CombinedOutput()
	if err != nil {
		return fmt.Errorf("run benchmark: %w\n%s", err, out)
	}
	rates, peak := map[string][]float64{}, map[string]float64{}
	for _, m := range copyRate.FindAllSubmatch(out, -1) {
		way, image := string(m[1]), string(m[2])
		v, err := strconv.ParseFloat(string(m[3]), 64)
		if err != nil {
			return err
		}
		rates[way+image] = append(rates[way+image], v)
		if v, err := strconv.ParseFloat(string(m[4]), 64); err == nil {
			peak[image] = max(peak[image], v)
		}
	}
	rows := [][]string{{"image", "agent (every chunk verified)", "curl | zstd -d | dd", "all runs", "memory of the agent at most"}}
	for _, image := range []struct{ key, name string }{{"full", "256 MiB"}, {"sparse", "256 MiB, a quarter of it content"}, {"large", "1 GiB"}} {
		agent, shell := rates["agent"+image.key], rates["shell"+image.key]
		if len(agent) == 0 || len(shell) == 0 {
			return fmt.Errorf("no figures of %s in\n%s", image.key, out)
		}
		slices.Sort(agent)
		slices.Sort(shell)
		rows = append(rows, []string{image.name, fmt.Sprintf("%.0f MB/s", agent[len(agent)/2]), fmt.Sprintf("%.0f MB/s", shell[len(shell)/2]), fmt.Sprint(agent, " ", shell), fmt.Sprintf("%.0f MB", peak[image.key])})
	}
	table("Image to disk on this host", "BenchmarkCopy: into a file, with fsync, over HTTP on loopback; median of 3 runs of 3.", rows...)
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
