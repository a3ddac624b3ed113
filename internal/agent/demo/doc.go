// Package demo is a machine that does not exist: it boots as a real one does
// (boot script, segment, TLS), runs the real workflow with the real client,
// fetches and verifies every byte of the image, and calls home. It has no disk
// and writes nothing.
package demo
