// Package browser does an operator's whole job in Chromium against a whole
// site: real control plane, region and store in this process, and the demo
// agent as the machines.
package browser
