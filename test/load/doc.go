// Command load drives browsers' worth of WebSockets and simulated machines
// against the real programs, measures what a person would feel, and writes a
// table and an HTML page with plots. `make load` runs it; docs/measurements.md
// keeps the numbers.
//
//	own     1,000 tasks are installed; 1,000 clients watch one each, 20 watch
//	        all, 10 read nothing
//	many    the same with 10,000 clients on one replica; etcd is a process of
//	        its own, as it is wherever there are replicas
//	fanout  the hub alone, one message to all: 20/s to 1,000 clients, 2/s to
//	        10,000, the scenario Centrifugo publishes numbers for
//
// The programs are subprocesses on loopback: the control plane (with its embedded
// store, unless it says otherwise above), one region, and `lpmos sim`; the sockets
// are in this process. All
// share the machine, so that what the clients cost is in the numbers.
//
// The test in this package is the same, small, in one process, and judges no
// times.
package main
