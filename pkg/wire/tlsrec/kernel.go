package tlsrec

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// The kernel can seal for a Conn, linux/tls.h: it is told key and number of
// the next record once, and takes plaintext then. The Conn goes on with
// counting, so that whoever asks it for its state gets that of the kernel, too;
// what else than data is to be sent it says by Owed.
//
// What the kernel is told is a struct tls12_crypto_info_*, of which the
// integers are in the byte order of the machine, the rest in that of the
// network:
//
//	AES-128-GCM        version 2  cipher 2  iv  8  key 16  salt 4  number 8
//	AES-256-GCM        version 2  cipher 2  iv  8  key 32  salt 4  number 8
//	ChaCha20-Poly1305  version 2  cipher 2  iv 12  key 32          number 8
//
// where salt and iv, in this order, are the IV of RFC 8446 5.3.
const (
	kernelVersion = 0x0304 // TLS_1_3_VERSION
	kernelHead    = 4
	kernelNumber  = 8

	kernelAES128 = 51 // TLS_CIPHER_AES_GCM_128
	kernelAES256 = 52
	kernelChaCha = 54
)

// MaxKernelKey is the length of the longest that AppendKernelKey appends.
const MaxKernelKey = kernelHead + nonceSize + maxKey + kernelNumber

// RecordType is the ContentType of a record, RFC 8446 5.1, that is not data.
type RecordType uint8

// The types of Owed.
const (
	RecordAlert     = RecordType(typeAlert)
	RecordKeyUpdate = RecordType(typeHandshake)
)

// errKernelKey says that bytes are not what AppendKernelKey has appended.
var errKernelKey = errors.New("tlsrec: the kernel has another key")

// AppendKernelKey appends what setsockopt(2) with TLS_TX wants: with it the
// kernel seals the next records. They are secret, at most MaxKernelKey bytes.
// The connection must not have been dropped.
func (c *Conn) AppendKernelKey(dst []byte) []byte {
	h := c.out
	cipher, salt := uint16(kernelChaCha), 0
	switch {
	case h.suite.key == 16:
		cipher, salt = kernelAES128, 4
	case h.suite.secret == maxSecret:
		cipher, salt = kernelAES256, 4
	}
	dst = binary.NativeEndian.AppendUint16(dst, kernelVersion)
	dst = binary.NativeEndian.AppendUint16(dst, cipher)
	dst = append(dst, h.keys.iv[salt:]...)
	dst = append(dst, h.keys.key[:h.suite.key]...)
	dst = append(dst, h.keys.iv[:salt]...)
	return binary.BigEndian.AppendUint64(dst, h.seq)
}

// AppendKernelProbe appends a key as AppendKernelKey does, that is all zero: to
// find out whether there is a kernel that takes it.
func AppendKernelProbe(dst []byte) []byte {
	dst = binary.NativeEndian.AppendUint16(dst, kernelVersion)
	dst = binary.NativeEndian.AppendUint16(dst, kernelAES128)
	return append(dst, make([]byte, nonceSize+16+kernelNumber)...)
}

// KernelKeySize returns the length of the key that begins with the four bytes
// of head, 0 if it is none of TLS 1.3 and a suite of RFC 8446.
func KernelKeySize(head []byte) int {
	if len(head) < kernelHead || binary.NativeEndian.Uint16(head) != kernelVersion {
		return 0
	}
	switch binary.NativeEndian.Uint16(head[2:]) {
	case kernelAES128:
		return kernelHead + nonceSize + 16 + kernelNumber
	case kernelAES256, kernelChaCha:
		return MaxKernelKey
	}
	return 0
}

// CheckKernelKey compares the connection with what getsockopt(2) with TLS_TX
// says: nil means that the kernel goes on where the connection does. The error
// tells no secret.
func (c *Conn) CheckKernelKey(key []byte) error {
	var own [MaxKernelKey]byte
	defer clear(own[:])
	want := c.AppendKernelKey(own[:0])
	at := len(want) - kernelNumber
	switch {
	case len(key) != len(want), string(key[:at]) != string(want[:at]):
		return errKernelKey
	case string(key[at:]) != string(want[at:]):
		return fmt.Errorf("tlsrec: the kernel is at record %d, want %d", binary.BigEndian.Uint64(key[at:]), c.out.seq)
	}
	return nil
}

// Sealed takes note that the kernel seals one more record of data.
func (c *Conn) Sealed() {
	c.out.seq++
	c.useless = 0
	if c.midMessage() {
		c.useless = 1
	}
}

// Unsealed takes the last Sealed back: the kernel did not take it.
func (c *Conn) Unsealed() { c.out.seq-- }

// Owed returns the record that the kernel is to seal before any other, and
// that Told is to be called of then; type 0: none is. After a failure that is
// the alert for it; with bye, and when nothing else is, close_notify.
func (c *Conn) Owed(bye bool) (typ RecordType, content []byte) {
	switch {
	case c.flags&flagAlertDue != 0:
		return RecordAlert, []byte{2, byte(c.alert)}
	case c.writable() != nil:
		return 0, nil
	case c.flags&flagUpdateDue != 0 || c.out.seq >= rekeyAt:
		content = []byte{messageKeyUpdate, 0, 0, 1, 0}
		if c.flags&flagAsk != 0 {
			content[messageHeader] = 1
		}
		return RecordKeyUpdate, content
	case bye:
		return RecordAlert, []byte{1, byte(AlertCloseNotify)}
	}
	return 0, nil
}

// Told takes note that the kernel has sealed what Owed has returned. After a
// KeyUpdate it is to be given the next key before any other record. An error
// means that there is none.
func (c *Conn) Told(typ RecordType) error {
	if typ == RecordAlert {
		c.out.seq++
		c.flags &^= flagAlertDue
		c.flags |= flagClosed
		return nil
	}
	c.flags &^= flagUpdateDue | flagAsk
	if err := c.out.next(); err != nil {
		c.flags |= flagClosed
		c.err = err
		return err
	}
	c.updates++
	return nil
}
