// Package pki is the certificate authorities of LPMOS: a site's, which is the
// control plane's own and speaks for every connection between its parts, and
// that of each region for its machines (Region).
//
// The site's signs the control plane's certificate when the operator has none to give,
// that of the store in the control plane's process, and those of regions. Parts
// of LPMOS trust this authority alone and check one fixed name, not the address
// they happen to dial: ControlPlaneName or StoreName. Machines never see it;
// they trust their region's.
//
// What a certificate is good for stands in it (extended key usage): a server's
// cannot log in anywhere, a region's cannot serve. Who may log in as whom is
// decided by the common name alone, which the authority chooses; nothing of a
// request is taken over but its public key (X.509: RFC 5280; requests: RFC
// 2986).
//
// An Authority and a Region may be used concurrently.
package pki
