package tpm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
)

// Device is where Linux has a TPM 2.0 behind its resource manager, which forgets
// what was loaded when it is closed.
const Device = "/dev/tpmrm0"

// ErrNone is wrapped by Open's error on a machine without a TPM 2.0.
var ErrNone = errors.New("this machine has no TPM 2.0")

// TPM is a TPM with its endorsement key loaded.
type TPM struct {
	rw          io.ReadWriteCloser
	id          Identity
	endorsement uint32 // handles
	activated   uint32
}

// Open opens the machine's TPM.
func Open(path string) (*TPM, error) {
	// Not os.OpenFile, which would make it non-blocking: then the driver answers
	// a read that comes before the TPM's answer with nothing, which is an end of
	// file to everybody else.
	fd, err := syscall.Open(path, syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, ErrNone
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return New(os.NewFile(uintptr(fd), path))
}

// New takes a TPM at the other end of rw, which takes a command with one Write
// and gives its response with one or more Reads, and has it make its keys. The
// TPM owns rw, and closes it when New fails.
func New(rw io.ReadWriteCloser) (_ *TPM, err error) {
	t := &TPM{rw: rw}
	defer func() {
		if err != nil {
			t.Close()
		}
	}()
	var public []byte
	if t.endorsement, public, err = t.createPrimary(endorsementTemplate()); err != nil {
		return nil, fmt.Errorf("make endorsement key: %w", err)
	}
	if _, err := parsePublic(public); err != nil {
		return nil, fmt.Errorf("make endorsement key: %w", err)
	}
	t.id.Endorsement = public
	if t.activated, public, err = t.createPrimary(activatedTemplate()); err != nil {
		return nil, fmt.Errorf("make key beside the endorsement key: %w", err)
	}
	t.id.Activated = Name(public)
	return t, nil
}

// Identity is what others may know.
func (t *TPM) Identity() Identity { return t.id }

// Unwrap opens what was wrapped for this TPM.
func (t *TPM) Unwrap(w Wrapped) (secret []byte, err error) {
	if err := w.Validate(); err != nil {
		return nil, err
	}
	session, err := t.policySession()
	if err != nil {
		return nil, err
	}
	// A policy session ends with the command that uses it, if that succeeds.
	defer func() {
		if err != nil {
			_ = t.flush(session)
		}
	}()
	var p writer
	p.sized(w.Credential)
	p.sized(w.Secret)
	r, err := t.command(ccActivateCredential, []uint32{t.activated, t.endorsement}, []uint32{rhPassword, session}, p.b)
	if err != nil {
		return nil, fmt.Errorf("unwrap: %w", err)
	}
	secret = r.sized(maxDigest)
	return secret, r.end("unwrapped secret")
}

// Close unloads the keys and closes the connection.
func (t *TPM) Close() error {
	var errs []error
	for _, h := range []uint32{t.activated, t.endorsement} {
		if h != 0 {
			errs = append(errs, t.flush(h))
		}
	}
	return errors.Join(append(errs, t.rw.Close())...)
}

// createPrimary makes, or finds again, the key of a template in the endorsement
// hierarchy (Part 3 §24.1): the same template gives the same key for as long as
// the TPM keeps its endorsement seed, also after it was cleared.
func (t *TPM) createPrimary(template []byte) (handle uint32, public []byte, err error) {
	var p writer
	p.sized([]byte{0, 0, 0, 0}) // TPM2B_SENSITIVE_CREATE: no authorization, no data
	p.sized(template)
	p.sized(nil) // outsideInfo
	p.u32(0)     // creationPCR: none
	r, err := t.commandWithHandle(ccCreatePrimary, &handle, []uint32{rhEndorsement}, []uint32{rhPassword}, p.b)
	if err != nil {
		return handle, nil, err
	}
	public = r.sized(maxPublic)
	r.sized(1024)      // creationData
	r.sized(maxDigest) // creationHash
	r.u16()            // creationTicket: tag,
	r.u32()            // hierarchy,
	r.sized(maxTicket) // digest
	r.sized(nameSize)  // name, which we compute ourselves
	return handle, public, r.end("primary key")
}

// policySession starts a session that satisfies the endorsement key's policy
// (Part 3 §11.1, §23.4).
func (t *TPM) policySession() (uint32, error) {
	var p writer
	p.sized(make([]byte, 16)) // nonceCaller: only freshness of an HMAC needs it
	p.sized(nil)              // encryptedSalt
	p.u8(sePolicy)
	p.u16(algNull) // no parameter encryption
	p.u16(algSHA256)
	var session uint32
	r, err := t.commandWithHandle(ccStartAuthSession, &session, []uint32{rhNull, rhNull}, nil, p.b)
	if err == nil {
		r.sized(maxDigest) // nonceTPM
		err = r.end("session")
	}
	if err != nil {
		return 0, fmt.Errorf("start session: %w", err)
	}
	p = writer{}
	p.sized(nil) // nonceTPM
	p.sized(nil) // cpHashA
	p.sized(nil) // policyRef
	p.u32(0)     // expiration
	if _, err := t.command(ccPolicySecret, []uint32{rhEndorsement, session}, []uint32{rhPassword}, p.b); err != nil {
		_ = t.flush(session)
		return 0, fmt.Errorf("satisfy the endorsement key's policy: %w", err)
	}
	return session, nil
}

// flush unloads an object or a session (Part 3 §28.4).
func (t *TPM) flush(handle uint32) error {
	var p writer
	p.u32(handle)
	_, err := t.command(ccFlushContext, nil, nil, p.b)
	return err
}

func (t *TPM) command(code uint32, handles, auths []uint32, parameters []byte) (*reader, error) {
	return t.commandWithHandle(code, nil, handles, auths, parameters)
}

// commandWithHandle sends a command (Part 1 §18) and returns a reader of its
// response's parameters. handle, if not nil, takes the handle of the response.
// Every authorization is an empty one.
func (t *TPM) commandWithHandle(code uint32, handle *uint32, handles, auths []uint32, parameters []byte) (*reader, error) {
	var w writer
	tag := uint16(stNoSessions)
	if len(auths) > 0 {
		tag = stSessions
	}
	w.u16(tag)
	w.u32(0) // size, below
	w.u32(code)
	for _, h := range handles {
		w.u32(h)
	}
	if len(auths) > 0 {
		var a writer
		for _, h := range auths {
			a.u32(h)
			a.sized(nil) // nonce
			a.u8(0)      // session attributes
			a.sized(nil) // authorization value
		}
		w.u32(uint32(len(a.b)))
		w.b = append(w.b, a.b...)
	}
	w.b = append(w.b, parameters...)
	binary.BigEndian.PutUint32(w.b[2:], uint32(len(w.b)))

	b, err := t.exchange(w.b)
	if err == nil {
		err = status(b)
	}
	if err != nil {
		return nil, err
	}
	return body(b, handle, len(auths) > 0)
}

// exchange sends a command and reads its response.
func (t *TPM) exchange(command []byte) ([]byte, error) {
	if _, err := t.rw.Write(command); err != nil {
		return nil, fmt.Errorf("ask TPM: %w", err)
	}
	b := make([]byte, maxMessage)
	n, err := io.ReadAtLeast(t.rw, b, responseHeader)
	if err != nil {
		return nil, fmt.Errorf("hear TPM: %w", err)
	}
	size := binary.BigEndian.Uint32(b[2:])
	if size < uint32(n) || size > maxMessage {
		return nil, fmt.Errorf("hear TPM: %w", errShort)
	}
	if _, err := io.ReadFull(t.rw, b[n:size]); err != nil {
		return nil, fmt.Errorf("hear TPM: %w", err)
	}
	return b[:size], nil
}

// Response codes (TPM_RC, Part 2 §6.6).
const (
	rcFormat1     = 0x080
	rcFormat1Mask = 0x0bf // without the number of the handle, session or parameter
	rcAuthFail    = 0x08e
	rcBadAuth     = 0x0a2
)

// ErrAuth is wrapped by the error of a TPM whose endorsement hierarchy has a
// password, which we do not know.
var ErrAuth = errors.New("its endorsement hierarchy has a password")

// status is why a TPM did not do what it was asked, or nil. The kernel has
// repeated what it answered with "again" to.
func status(b []byte) error {
	code := binary.BigEndian.Uint32(b[6:])
	if code == 0 {
		return nil
	}
	err := fmt.Errorf("the TPM refuses (code %#x)", code)
	if code&rcFormat1 != 0 && (code&rcFormat1Mask == rcAuthFail || code&rcFormat1Mask == rcBadAuth) {
		err = fmt.Errorf("%w: %w", err, ErrAuth)
	}
	return err
}

// body is a response's parameters: after the handle, if there is one, and
// before the authorizations.
func body(b []byte, handle *uint32, sessions bool) (*reader, error) {
	r := &reader{b: b[responseHeader:]}
	if handle != nil {
		*handle = r.u32()
	}
	if sessions {
		n := r.u32()
		if n > maxMessage {
			r.failed = true
		}
		r.b = r.take(int(min(n, maxMessage)))
	}
	if r.failed {
		return nil, fmt.Errorf("hear TPM: %w", errShort)
	}
	return r, nil
}
