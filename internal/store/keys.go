package store

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/lpmos/lpmos"
)

// prefix is before every key. All prefixes used in ranges, watches and rights
// end in a slash, so that dc1 never reads dc10.
const prefix = "/lpmos/"

// Kind says what a key holds. The list in docs/keyspace.md is compared with
// Kinds by a test.
type Kind string

// The kinds of keys, spelled as their patterns.
const (
	KindMetadata     Kind = "tasks/{id}/metadata"
	KindStatus       Kind = "tasks/{id}/status"
	KindHardware     Kind = "tasks/{id}/hardware"
	KindPlan         Kind = "tasks/{id}/plan"
	KindApproval     Kind = "tasks/{id}/approval"
	KindProgress     Kind = "tasks/{id}/progress"
	KindLogs         Kind = "tasks/{id}/logs"
	KindError        Kind = "tasks/{id}/error"
	KindReceipt      Kind = "tasks/{id}/receipt"
	KindTaskTemplate Kind = "tasks/{id}/pinned_template"
	KindTaskSetup    Kind = "tasks/{id}/pinned_system"
	KindPrevious     Kind = "tasks/{id}/previous"
	KindEvent        Kind = "tasks/{id}/events/{seq}"
	KindArchive      Kind = "archive/{id}"

	KindAgentInfo   Kind = "agents/{mac}/info"
	KindAgentSeen   Kind = "agents/{mac}/last_seen"
	KindAgentTask   Kind = "agents/{mac}/task_id"
	KindMachineTask Kind = "machines/{uuid}/task_id"
	KindLock        Kind = "agents/{mac}/lock"
	KindTPM         Kind = "agents/{mac}/tpm"

	KindOrder        Kind = "regions/{region}/tasks/{id}"
	KindBoot         Kind = "regions/{region}/machines/{mac}"
	KindDiscovered   Kind = "regions/{region}/discovered/{mac}"
	KindHeartbeat    Kind = "regions/{region}/client/heartbeat"
	KindCapabilities Kind = "regions/{region}/client/capabilities"
	KindRegionStatus Kind = "regions/{region}/client/status"
	KindIdentity     Kind = "regions/{region}/identity"
	KindSecrets      Kind = "regions/{region}/secrets/{id}"
	KindPermits      Kind = "regions/{region}/permits"

	KindReportAgent    Kind = "regions/{region}/reports/{id}/{attempt}/agent"
	KindReportHardware Kind = "regions/{region}/reports/{id}/{attempt}/hardware"
	KindReportProgress Kind = "regions/{region}/reports/{id}/{attempt}/progress"
	KindReportPermit   Kind = "regions/{region}/reports/{id}/{attempt}/permit_request"
	KindReportLog      Kind = "regions/{region}/reports/{id}/{attempt}/log/{chunk}"
	KindReportResult   Kind = "regions/{region}/reports/{id}/{attempt}/result"
	KindReportBooted   Kind = "regions/{region}/reports/{id}/{attempt}/booted"

	KindGlobal      Kind = "config/global"
	KindStop        Kind = "config/stop"
	KindStoreID     Kind = "config/store_id"
	KindImage       Kind = "config/images/{os}/{version}/{arch}"
	KindProfile     Kind = "config/profiles/{name}"
	KindTemplate    Kind = "config/templates/{name}"
	KindIdempotency Kind = "idempotency/{key}"
	KindEnrollment  Kind = "enrollments/{key}"

	KindBatchOutcome Kind = "batches/{id}/outcome"
	KindBatchRequest Kind = "batches/{id}/request"

	KindUser   Kind = "users/{name}"
	KindSignIn Kind = "sessions/{key}"
	KindToken  Kind = "tokens/{key}"
	KindTries  Kind = "tries/{key}"

	KindAuditEntry Kind = "audit/entries/{seq}"
	KindAuditHead  Kind = "audit/head"
	KindSignedHead Kind = "audit/signed/{seq}"
)

// Kinds are all patterns, in the order of docs/keyspace.md.
var Kinds = []Kind{
	KindMetadata, KindStatus, KindHardware, KindPlan, KindApproval, KindProgress, KindLogs, KindError, KindReceipt, KindTaskTemplate, KindTaskSetup, KindPrevious, KindEvent,
	KindArchive,
	KindAgentInfo, KindAgentSeen, KindAgentTask, KindMachineTask, KindLock, KindTPM,
	KindOrder, KindBoot, KindDiscovered, KindHeartbeat, KindCapabilities, KindRegionStatus, KindIdentity, KindSecrets, KindPermits,
	KindReportAgent, KindReportHardware, KindReportProgress, KindReportPermit, KindReportLog, KindReportResult, KindReportBooted,
	KindGlobal, KindStop, KindStoreID, KindImage, KindProfile, KindTemplate, KindIdempotency, KindEnrollment,
	KindBatchOutcome, KindBatchRequest,
	KindUser, KindSignIn, KindToken, KindTries,
	KindAuditEntry, KindAuditHead, KindSignedHead,
}

// Key is a key taken apart. Only the fields its pattern names are set.
type Key struct {
	Kind    Kind
	TaskID  string // or a batch's id
	Region  string
	MAC     lpmos.MAC
	UUID    string
	Seq     int64 // event, entry of the audit
	Attempt int
	Chunk   int // of a log
	OS      string
	Version string
	Arch    string
	Name    string // idempotency key, profile, template, user; hash of a session or token
}

// String builds the key. It panics on a part that is not valid, because parts
// are validated where they come in: what reached this point is a defect.
func (k Key) String() string {
	var b strings.Builder
	b.WriteString(prefix)
	for i, part := range strings.Split(string(k.Kind), "/") {
		if i > 0 {
			b.WriteByte('/')
		}
		v := part
		if f, ok := placeholders[part]; ok {
			var err error
			if v, err = f.get(k); err != nil {
				panic(fmt.Sprintf("store: build key %s: %v", k.Kind, err))
			}
		}
		b.WriteString(v)
	}
	return b.String()
}

// ParseKey takes a key apart. A key that is not of a known pattern, or whose
// parts are not valid, is not ours.
func ParseKey(s string) (Key, bool) {
	rest, ok := strings.CutPrefix(s, prefix)
	if !ok {
		return Key{}, false
	}
	parts := strings.Split(rest, "/")
next:
	for _, p := range patterns[parts[0]] {
		if len(p.parts) != len(parts) {
			continue
		}
		k := Key{Kind: p.kind}
		for i, want := range p.parts {
			f, ok := placeholders[want]
			if !ok {
				if parts[i] != want {
					continue next
				}
			} else if !f.set(&k, parts[i]) {
				continue next
			}
		}
		return k, true
	}
	return Key{}, false
}

type pattern struct {
	kind  Kind
	parts []string
}

// patterns are all, by their first part, which in none of them varies.
var patterns = func() map[string][]pattern {
	out := map[string][]pattern{}
	for _, k := range Kinds {
		parts := strings.Split(string(k), "/")
		out[parts[0]] = append(out[parts[0]], pattern{k, parts})
	}
	return out
}()

type placeholder struct {
	get func(Key) (string, error)
	set func(*Key, string) bool
}

func text(valid func(string) bool, field func(*Key) *string) placeholder {
	return placeholder{
		get: func(k Key) (string, error) {
			v := *field(&k)
			if !valid(v) {
				return "", fmt.Errorf("part %q is not valid", v)
			}
			return v, nil
		},
		set: func(k *Key, v string) bool { *field(k) = v; return valid(v) },
	}
}

// number is spelled in decimal with at least width digits, so that keys sort
// as their numbers do; any other spelling of the same number is not ours.
func number[T int | int64](width int, field func(*Key) *T) placeholder {
	return placeholder{
		get: func(k Key) (string, error) {
			v := *field(&k)
			if v < 0 {
				return "", fmt.Errorf("number %d is negative", v)
			}
			return fmt.Sprintf("%0*d", width, v), nil
		},
		set: func(k *Key, v string) bool {
			n, err := strconv.ParseInt(v, 10, 32)
			*field(k) = T(n)
			return err == nil && n >= 0 && fmt.Sprintf("%0*d", width, n) == v
		},
	}
}

var placeholders = map[string]placeholder{
	"{id}":      text(lpmos.ValidTaskID, func(k *Key) *string { return &k.TaskID }),
	"{region}":  text(lpmos.ValidRegionID, func(k *Key) *string { return &k.Region }),
	"{uuid}":    text(lpmos.ValidTaskID, func(k *Key) *string { return &k.UUID }),
	"{os}":      text(lpmos.ValidName, func(k *Key) *string { return &k.OS }),
	"{version}": text(lpmos.ValidName, func(k *Key) *string { return &k.Version }),
	"{arch}":    text(lpmos.ValidName, func(k *Key) *string { return &k.Arch }),
	"{name}":    text(lpmos.ValidName, func(k *Key) *string { return &k.Name }),
	"{key}":     text(lpmos.ValidDigest, func(k *Key) *string { return &k.Name }),
	"{seq}":     number(10, func(k *Key) *int64 { return &k.Seq }),
	"{attempt}": number(1, func(k *Key) *int { return &k.Attempt }),
	"{chunk}":   number(6, func(k *Key) *int { return &k.Chunk }),
	"{mac}": {
		get: func(k Key) (string, error) {
			if k.MAC.IsZero() {
				return "", fmt.Errorf("MAC is zero")
			}
			return k.MAC.String(), nil
		},
		set: func(k *Key, v string) bool {
			m, err := lpmos.ParseMAC(v)
			k.MAC = m
			return err == nil && m.String() == v
		},
	},
}

func taskPrefix(id string) string       { return prefix + "tasks/" + mustID(id) + "/" }
func eventPrefix(id string) string      { return taskPrefix(id) + "events/" }
func regionPrefix(region string) string { return prefix + "regions/" + mustRegion(region) + "/" }
func reportPrefix(region, id string) string {
	return regionPrefix(region) + "reports/" + mustID(id) + "/"
}

func mustID(id string) string {
	if !lpmos.ValidTaskID(id) {
		panic(fmt.Sprintf("store: %q is not a task id", id))
	}
	return id
}

func mustRegion(id string) string {
	if !lpmos.ValidRegionID(id) {
		panic(fmt.Sprintf("store: %q is not a region id", id))
	}
	return id
}
