package lpmos

import (
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

// AgentKey is who a boot of the agent is. The agent makes it in RAM, nothing of
// it outlives the boot, and it has two halves because one key must not serve
// two purposes: one signs (TLS client authentication), the other opens what was
// sealed for this boot alone.
type AgentKey struct {
	sign ed25519.PrivateKey
	seal hpke.PrivateKey
	pub  AgentPublic
}

// AgentPublic is the public part of an AgentKey, as the agent registers it.
type AgentPublic struct {
	Sign []byte `json:"sign"` // Ed25519 (RFC 8032), 32 bytes
	Box  []byte `json:"seal"` // X25519 (RFC 7748), 32 bytes
}

// NewAgentKey makes the key of one boot.
func NewAgentKey() (*AgentKey, error) {
	pub, sign, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make agent key: %w", err)
	}
	seal, err := kem.GenerateKey()
	if err != nil {
		return nil, fmt.Errorf("make agent key: %w", err)
	}
	return &AgentKey{sign: sign, seal: seal, pub: AgentPublic{Sign: pub, Box: seal.PublicKey().Bytes()}}, nil
}

// SigningHalf makes a key of its signing half alone, which opens nothing: what
// the agent leaves to itself in an installer that it starts.
func SigningHalf(seed []byte) (*AgentKey, error) {
	if len(seed) != ed25519.SeedSize {
		return nil, &InvalidError{Field: "sign", Problem: "is not the seed of an Ed25519 key"}
	}
	sign := ed25519.NewKeyFromSeed(seed)
	return &AgentKey{sign: sign, pub: AgentPublic{Sign: sign.Public().(ed25519.PublicKey)}}, nil
}

// Signer is the private key for TLS.
func (k *AgentKey) Signer() ed25519.PrivateKey { return k.sign }

// Public is what others may know.
func (k *AgentKey) Public() AgentPublic { return k.pub }

// Open opens what Seal closed for this key and context.
func (k *AgentKey) Open(context string, sealed []byte) ([]byte, error) {
	b, err := hpke.Open(k.seal, hpke.HKDFSHA256(), hpke.AES256GCM(), sealInfo(context), sealed)
	if err != nil {
		return nil, fmt.Errorf("open what was sealed for this boot: %w", err)
	}
	return b, nil
}

// Validate checks that p can be a key.
func (p AgentPublic) Validate() error {
	if len(p.Sign) != ed25519.PublicKeySize {
		return &InvalidError{Field: "agent_key.sign", Problem: "is not an Ed25519 key of 32 bytes"}
	}
	if _, err := kem.NewPublicKey(p.Box); err != nil {
		return &InvalidError{Field: "agent_key.seal", Problem: "is not an X25519 key of 32 bytes"}
	}
	return nil
}

// Fingerprint names the key: "sha256:" and the SHA-256 of both halves.
func (p AgentPublic) Fingerprint() string {
	b := append([]byte("lpmos agent key v1\n"), p.Sign...)
	return DigestBytes(append(b, p.Box...))
}

// Seal closes b for the holder of the key (HPKE, RFC 9180: X25519,
// HKDF-SHA-256, AES-256-GCM). It opens with the same context only.
func (p AgentPublic) Seal(context string, b []byte) ([]byte, error) {
	pub, err := kem.NewPublicKey(p.Box)
	if err != nil {
		return nil, &InvalidError{Field: "agent_key.seal", Problem: "is not an X25519 key of 32 bytes"}
	}
	sealed, err := hpke.Seal(pub, hpke.HKDFSHA256(), hpke.AES256GCM(), sealInfo(context), b)
	if err != nil {
		return nil, fmt.Errorf("seal for an agent: %w", err)
	}
	return sealed, nil
}

var kem = hpke.DHKEM(ecdh.X25519())

func sealInfo(context string) []byte { return []byte("lpmos sealed for an agent v1\n" + context) }

// keyWordCount is how many words a fingerprint has: 64 bits, so that nobody
// finds a second key with the same words while a machine waits.
const keyWordCount = 8

// KeyWords spells the beginning of a fingerprint as eight words, for a person
// who compares what a machine's console says with what a page says. A text that
// is not a fingerprint has no words.
func KeyWords(fingerprint string) string {
	raw, err := hex.DecodeString(strings.TrimPrefix(fingerprint, "sha256:"))
	if err != nil || len(raw) != sha256.Size {
		return ""
	}
	out := make([]string, keyWordCount)
	for i := range out {
		out[i] = keyWords[raw[i]]
	}
	return strings.Join(out, " ")
}

// keyWords are 256 short words that are told apart at a glance and over a
// telephone. Their order is part of the protocol.
var keyWords = strings.Fields(`
acid acorn actor adobe agent alarm album alley amber angel ankle apple apron arena armor arrow
aspen atlas attic award bacon badge bagel baker banjo barn basin beach beard beef bench berry
bike birch bison blade blaze bloom board bolt bonus book boot brain brass bread brick bride
broom brush bucket buddy bulb bunny cabin cable cactus camel candy canoe cargo carpet castle cedar
chalk charm cherry chess chief cider cigar circus clay cliff clock cloud clover coach cobra coffee
comet copper coral cotton couch crab crane crown cube daisy dance deer delta denim desert diary
dinner disco dolphin donkey dragon drum duck eagle earth echo elbow ember engine envoy fabric falcon
farmer feather fence ferry fiddle field finger flame flute forest fossil fox frost fruit galaxy garden
garlic giant ginger giraffe glacier globe glove goat gold goose grape gravel guitar hammer harbor harvest
hawk hazel helmet hero honey horse hotel husky igloo indigo insect iron island ivory jacket jaguar
jelly jewel judge juice jungle kayak kettle kiwi knight koala ladder lagoon lamp lemon lizard llama
lobster lotus magnet mango maple marble meadow melon mercury meteor milk mirror monkey moose mosaic muffin
museum nectar needle ninja noodle novel nutmeg oasis ocean olive onion opera orbit orchid otter owl
oyster paddle panda paper parrot peach pearl pebble pencil pepper piano pickle pilot pirate planet plum
pocket polar pony potato prism pumpkin puzzle quartz queen rabbit radar raven ribbon river robin rocket
saddle salmon scarf shadow sheep sofa spider spoon squid sugar tiger tulip velvet walnut whale zebra
`)
