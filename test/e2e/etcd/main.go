// Command etcd is one etcd server process for the end-to-end tests, with the
// flags of docker-compose.yml. A test can kill it as it would a container.
package main

import (
	"flag"
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"syscall"

	"go.etcd.io/etcd/server/v3/embed"
)

func main() {
	client := flag.String("listen-client-urls", "http://127.0.0.1:2379", "where clients connect")
	peer := flag.String("listen-peer-urls", "http://127.0.0.1:2380", "where members connect")
	dir := flag.String("data-dir", "", "data directory")
	flag.Parse()
	if err := run(*client, *peer, *dir); err != nil {
		fmt.Fprintln(os.Stderr, "etcd:", err)
		os.Exit(1)
	}
}

func run(client, peer, dir string) error {
	c := embed.NewConfig()
	c.Name, c.Dir, c.LogLevel = "lpmos", dir, "warn"
	for _, l := range []struct {
		arg  string
		urls []*[]url.URL
	}{
		{client, []*[]url.URL{&c.ListenClientUrls, &c.AdvertiseClientUrls}},
		{peer, []*[]url.URL{&c.ListenPeerUrls, &c.AdvertisePeerUrls}},
	} {
		u, err := url.Parse(l.arg)
		if err != nil {
			return err
		}
		for _, to := range l.urls {
			*to = []url.URL{*u}
		}
	}
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	e, err := embed.StartEtcd(c)
	if err != nil {
		return err
	}
	defer e.Close()
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	select {
	case <-stop:
		return nil
	case err := <-e.Err():
		return err
	}
}
