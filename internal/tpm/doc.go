// Package tpm speaks as much TPM 2.0 as it takes to give a secret to one
// machine alone: the machine's TPM makes its endorsement key, whose public part
// names the TPM for life, and whoever knows that part can wrap up to 32 bytes so
// that this TPM unwraps them and no other does.
//
// Wrap is TPM2_MakeCredential in software; a TPM's Unwrap is
// TPM2_ActivateCredential. "Part 1" to "Part 3" are the parts of the TCG's
// Trusted Platform Module Library, Family 2.0, revision 01.59; the key's template
// is L-2 (ECC NIST P-256) of the TCG EK Credential Profile for TPM Family 2.0,
// version 2.3, annex B.3.4. Every TPM of a PC has that curve.
//
// The manufacturer's certificate of the endorsement key is not read: a key is
// trusted because a person approved the machine when it was first seen.
//
// It is not a TPM library: it has five commands, one curve, one hash, and empty
// authorizations. Both the agent and its region link it, so it is standard
// library only. A TPM is for one goroutine; the functions may be used
// concurrently.
package tpm
