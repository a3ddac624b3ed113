// Package metrics is what a monitor reads at /metrics, in the Prometheus text
// format: this replica's view of the tasks and regions, its WebSocket clients,
// its requests, and whatever the process's default registry holds (the Go
// runtime, and etcd when it runs in this process).
//
// Gauges are read when they are asked for; nothing is counted twice.
package metrics

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/lpmos/lpmos"
)

// Reader is the read model.
type Reader interface {
	Ready() bool
	Rev() int64
	Counts() map[lpmos.Status]int
	Regions() []lpmos.Region
	Stopped() *lpmos.Stop
	Alarmed() int // live tasks with an alarm
}

// Hub is what the WebSocket server tells of itself. All but Connections only
// grow.
type Hub struct {
	Connections int   // now
	Published   int64 // messages, each counted once
	Sent        int64 // messages written to clients
	Coalesced   int64 // messages that gave way to newer ones of their subject
	Evicted     int64 // clients that could not keep up
}

// Metrics collects. It may be used concurrently.
type Metrics struct {
	reg      *prometheus.Registry
	requests *prometheus.HistogramVec
}

// New makes metrics. hub may be nil.
func New(read Reader, hub func() Hub, version string) *Metrics {
	m := &Metrics{
		reg: prometheus.NewRegistry(),
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "lpmos_http_request_duration_seconds", Help: "Requests answered, by route as the API reference names it.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10},
		}, []string{"method", "route", "status"}),
	}
	info := prometheus.NewGauge(prometheus.GaugeOpts{Name: "lpmos_build_info", Help: "Always 1.", ConstLabels: prometheus.Labels{"version": version}})
	info.Set(1)
	m.reg.MustRegister(m.requests, info, &collector{read: read, hub: hub})
	return m
}

// Observe counts a request. route is a pattern, never a path: paths hold ids,
// of which there is no end. Nor is there of the methods that a client may make
// up, so those that the site does not know are one.
func (m *Metrics) Observe(method, route string, status int, took time.Duration) {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodDelete:
	default:
		method = "other"
	}
	m.requests.WithLabelValues(method, route, strconv.Itoa(status)).Observe(took.Seconds())
}

// Handler serves the text format.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(prometheus.Gatherers{m.reg, prometheus.DefaultGatherer}, promhttp.HandlerOpts{})
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

var (
	tasksDesc     = desc("lpmos_tasks", "Tasks in each status.", "status")
	regionsDesc   = desc("lpmos_regions", "Regions that ever registered, by whether they are online.", "status")
	readyDesc     = desc("lpmos_ready", "1 once all tasks are in memory.")
	revDesc       = desc("lpmos_store_revision", "Revision of the store that this replica has seen.")
	stoppedDesc   = desc("lpmos_emergency_stop", "1 while the emergency stop stands.")
	alarmsDesc    = desc("lpmos_tasks_alarmed", "Live tasks with an alarm: a copied credential, a second machine.")
	connsDesc     = desc("lpmos_websocket_connections", "WebSocket clients connected now.")
	publishedDesc = desc("lpmos_websocket_published_total", "Messages for WebSocket clients, each counted once.")
	sentDesc      = desc("lpmos_websocket_sent_total", "Messages written to WebSocket clients.")
	coalescedDesc = desc("lpmos_websocket_coalesced_total", "Messages that gave way to newer ones of their subject before they were sent.")
	evictedDesc   = desc("lpmos_websocket_evicted_total", "WebSocket clients closed because they could not keep up.")
)

type collector struct {
	read Reader
	hub  func() Hub
}

func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{tasksDesc, regionsDesc, readyDesc, revDesc, stoppedDesc, alarmsDesc} {
		ch <- d
	}
	if c.hub != nil {
		for _, d := range []*prometheus.Desc{connsDesc, publishedDesc, sentDesc, coalescedDesc, evictedDesc} {
			ch <- d
		}
	}
}

func (c *collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counts := c.read.Counts()
	for _, s := range lpmos.Statuses {
		gauge(tasksDesc, float64(counts[s]), string(s))
	}
	online := map[string]int{"online": 0, "offline": 0}
	for _, r := range c.read.Regions() {
		online[r.Status]++
	}
	for status, n := range online {
		gauge(regionsDesc, float64(n), status)
	}
	ready := 0.0
	if c.read.Ready() {
		ready = 1
	}
	gauge(readyDesc, ready)
	gauge(revDesc, float64(c.read.Rev()))
	stopped := 0.0
	if c.read.Stopped() != nil {
		stopped = 1
	}
	gauge(stoppedDesc, stopped)
	gauge(alarmsDesc, float64(c.read.Alarmed()))
	if c.hub == nil {
		return
	}
	h := c.hub()
	gauge(connsDesc, float64(h.Connections))
	counter := func(d *prometheus.Desc, v int64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v))
	}
	counter(publishedDesc, h.Published)
	counter(sentDesc, h.Sent)
	counter(coalescedDesc, h.Coalesced)
	counter(evictedDesc, h.Evicted)
}
