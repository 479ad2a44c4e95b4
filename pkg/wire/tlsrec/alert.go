package tlsrec

import (
	"errors"
	"fmt"
)

// Alert is the description of an alert, RFC 8446 6.
type Alert uint8

// The alerts that this package sends, or treats in its own way. Others come
// with their number.
const (
	AlertCloseNotify       Alert = 0
	AlertUnexpectedMessage Alert = 10
	AlertBadRecordMAC      Alert = 20
	AlertRecordOverflow    Alert = 22
	AlertIllegalParameter  Alert = 47
	AlertDecodeError       Alert = 50
	AlertProtocolVersion   Alert = 70
	AlertInternalError     Alert = 80
	AlertUserCanceled      Alert = 90
)

var alertNames = map[Alert]string{
	AlertCloseNotify:       "close_notify",
	AlertUnexpectedMessage: "unexpected_message",
	AlertBadRecordMAC:      "bad_record_mac",
	AlertRecordOverflow:    "record_overflow",
	40:                     "handshake_failure",
	42:                     "bad_certificate",
	43:                     "unsupported_certificate",
	44:                     "certificate_revoked",
	45:                     "certificate_expired",
	46:                     "certificate_unknown",
	AlertIllegalParameter:  "illegal_parameter",
	48:                     "unknown_ca",
	49:                     "access_denied",
	AlertDecodeError:       "decode_error",
	51:                     "decrypt_error",
	AlertProtocolVersion:   "protocol_version",
	71:                     "insufficient_security",
	AlertInternalError:     "internal_error",
	86:                     "inappropriate_fallback",
	AlertUserCanceled:      "user_canceled",
	109:                    "missing_extension",
	110:                    "unsupported_extension",
	112:                    "unrecognized_name",
	113:                    "bad_certificate_status_response",
	115:                    "unknown_psk_identity",
	116:                    "certificate_required",
	120:                    "no_application_protocol",
}

// String returns the name that the RFC gives, or the number.
func (a Alert) String() string {
	if name, ok := alertNames[a]; ok {
		return name
	}
	return fmt.Sprintf("alert %d", uint8(a))
}

// AlertError says that a connection has failed, and by which alert the other
// side knows or will know.
type AlertError struct {
	Alert  Alert
	Remote bool  // the peer sent the alert; otherwise we found the fault
	Err    error // the fault; nil if Remote
}

// Error tells the alert, and the fault if there is one.
func (e *AlertError) Error() string {
	if e.Remote {
		return fmt.Sprintf("tlsrec: peer sent %v", e.Alert)
	}
	return fmt.Sprintf("tlsrec: %v: %v", e.Alert, e.Err)
}

// Unwrap returns the fault.
func (e *AlertError) Unwrap() error { return e.Err }

var (
	// ErrClosed says that CloseNotify was before.
	ErrClosed = errors.New("tlsrec: connection is closed for writing")

	// ErrTruncated says that the stream ended without close_notify, so that
	// the end may be an attacker's.
	ErrTruncated = errors.New("tlsrec: stream ended without close_notify")
)
