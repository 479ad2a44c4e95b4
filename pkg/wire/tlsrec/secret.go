package tlsrec

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"hash"
	"slices"

	"golang.org/x/crypto/chacha20poly1305"
)

const (
	maxSecret = 48 // the longest: SHA-384
	maxKey    = 32
	nonceSize = 12
	tagSize   = 16
)

// suite is one of the cipher suites of RFC 8446 B.4 that crypto/tls has.
type suite struct {
	id     uint16
	hash   func() hash.Hash
	secret int // bytes of a traffic secret: of a hash
	key    int // bytes
	aead   func(key []byte) (cipher.AEAD, error)
}

var suites = [...]suite{
	{id: tls.TLS_AES_128_GCM_SHA256, hash: sha256.New, secret: sha256.Size, key: 16, aead: newGCM},
	{id: tls.TLS_AES_256_GCM_SHA384, hash: sha512.New384, secret: sha512.Size384, key: 32, aead: newGCM},
	{id: tls.TLS_CHACHA20_POLY1305_SHA256, hash: sha256.New, secret: sha256.Size, key: 32, aead: chacha20poly1305.New},
}

func newGCM(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// suiteOf returns the suite with the number, nil if there is none.
func suiteOf(id uint16) *suite {
	for i := range suites {
		if suites[i].id == id {
			return &suites[i]
		}
	}
	return nil
}

// expand is HKDF-Expand-Label without a context, RFC 8446 7.1.
func (s *suite) expand(secret []byte, label string, n int) ([]byte, error) {
	label = "tls13 " + label
	info := make([]byte, 0, 32)
	info = binary.BigEndian.AppendUint16(info, uint16(n))
	info = append(info, byte(len(label)))
	info = append(info, label...)
	info = append(info, 0)
	return hkdf.Expand(s.hash, secret, string(info), n)
}

// half is one direction of a connection.
type half struct {
	suite *suite
	aead  cipher.AEAD // nil: to be made when it is needed
	seq   uint64      // of the next record
	keys  *keys
}

// keys is what nobody may see. fmt, which gets at unexported fields by
// reflection and follows one pointer of them if the verb is wrong, prints its
// address at most: there are two on the way from a Conn.
type keys struct {
	secret [maxSecret]byte // what all else comes from; suite.secret bytes
	iv     [nonceSize]byte
	nonce  [nonceSize]byte // of the record at hand; here, so that it need not be allocated
	key    [maxKey]byte    // suite.key bytes; here, so that the AEAD can be made anew
}

// newHalf makes a direction from its traffic secret, of which it keeps a copy.
func newHalf(s *suite, secret []byte, seq uint64) (*half, error) {
	if len(secret) != s.secret {
		return nil, fmt.Errorf("tlsrec: traffic secret of %d bytes for %s, want %d", len(secret), tls.CipherSuiteName(s.id), s.secret)
	}
	h := &half{suite: s, seq: seq, keys: new(keys)}
	copy(h.keys.secret[:], secret)
	if err := h.derive(); err != nil {
		return nil, err
	}
	return h, nil
}

// derive makes key and IV from the secret, RFC 8446 7.3.
func (h *half) derive() error {
	secret := h.keys.secret[:h.suite.secret]
	key, err := h.suite.expand(secret, "key", h.suite.key)
	if err != nil {
		return fmt.Errorf("tlsrec: key: %w", err)
	}
	copy(h.keys.key[:], key)
	clear(key)
	iv, err := h.suite.expand(secret, "iv", nonceSize)
	if err != nil {
		return fmt.Errorf("tlsrec: iv: %w", err)
	}
	copy(h.keys.iv[:], iv)
	clear(iv)
	return h.warm()
}

// warm makes the AEAD of the key.
func (h *half) warm() (err error) {
	if h.aead, err = h.suite.aead(h.keys.key[:h.suite.key]); err != nil {
		return fmt.Errorf("tlsrec: %s: %w", tls.CipherSuiteName(h.suite.id), err)
	}
	return nil
}

// next goes on to the next key, RFC 8446 7.2. The old secret is no more.
func (h *half) next() error {
	secret, err := h.suite.expand(h.keys.secret[:h.suite.secret], "traffic upd", h.suite.secret)
	if err != nil {
		return fmt.Errorf("tlsrec: next secret: %w", err)
	}
	copy(h.keys.secret[:], secret)
	clear(secret)
	h.seq = 0
	return h.derive()
}

// setNonce makes the nonce of the record at hand, RFC 8446 5.3.
func (h *half) setNonce() {
	k := h.keys
	k.nonce = k.iv
	low := k.nonce[nonceSize-8:]
	binary.BigEndian.PutUint64(low, binary.BigEndian.Uint64(low)^h.seq)
}

// open takes the protection off a whole record, in place. If it returns an
// error, the record is not of this key and number, its bytes are lost, and
// the sequence number stands.
func (h *half) open(record []byte) ([]byte, error) {
	if h.aead == nil {
		if err := h.warm(); err != nil {
			return nil, err
		}
	}
	h.setNonce()
	inner, err := h.aead.Open(record[headerSize:headerSize], h.keys.nonce[:], record[headerSize:], record[:headerSize])
	if err != nil {
		return nil, err
	}
	h.seq++
	return inner, nil
}

// seal appends one record with at most MaxPlaintext bytes.
func (h *half) seal(dst []byte, typ contentType, plaintext []byte) []byte {
	at := len(dst)
	dst = slices.Grow(dst, len(plaintext)+Overhead)[:at+len(plaintext)+Overhead]
	copy(dst[at+headerSize:], plaintext)
	h.sealWithin(dst[at:], typ)
	return dst
}

// sealWithin makes a record of b, whose plaintext stands in its place.
func (h *half) sealWithin(b []byte, typ contentType) {
	n := len(b) - headerSize
	inner := b[headerSize : len(b)-tagSize]
	b[0], b[1], b[2], b[3], b[4] = byte(typeApplicationData), 3, 3, byte(n>>8), byte(n)
	inner[len(inner)-1] = byte(typ)
	if h.aead == nil {
		if err := h.warm(); err != nil {
			panic(err) // of a key with which it was made before
		}
	}
	h.setNonce()
	h.aead.Seal(inner[:0], h.keys.nonce[:], inner, b[:headerSize])
	h.seq++
}

// drop makes the secrets unreadable. The AEAD is left to the garbage
// collector: crypto/aes cannot clear its key schedule.
func (h *half) drop() {
	*h.keys = keys{}
	h.aead = nil
}
