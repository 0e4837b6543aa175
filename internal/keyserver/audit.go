package keyserver

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/gofrs/flock"

	"github.com/cconvert/cconvert/pkg/sgx"
	"github.com/cconvert/cconvert/pkg/sgx/quote"
)

// Decision is a line of the audit log: what was asked for, by whom, and what became of it. No secret is in it.
type Decision struct {
	// Number counts the lines, from 1, and Previous is the SHA-256 of the line before, in hexadecimal.
	Number   int       `json:"number"`
	Previous string    `json:"previous"`
	Time     time.Time `json:"time"`
	Released bool      `json:"released"`
	// Reason says why nothing was released.
	Reason string `json:"reason,omitempty"`
	Policy string `json:"policy,omitempty"`
	// Unwritten is how many refusals before this line were too many to be written.
	Unwritten int `json:"unwritten,omitempty"`
	// Want are the slots that were asked for.
	Want    []string `json:"want,omitempty"`
	Address string   `json:"address,omitempty"`
	// Simulated says that the quote is one that anybody can make.
	Simulated bool `json:"simulated,omitempty"`
	// Of the quote; without Status it is not authentic, and nothing of it can be relied on.
	MREnclave  *sgx.Measurement `json:"mr_enclave,omitempty"`
	MRSigner   *sgx.Measurement `json:"mr_signer,omitempty"`
	ISVProdID  uint16           `json:"isv_prod_id,omitempty"`
	ISVSVN     uint16           `json:"isv_svn,omitempty"`
	Debug      bool             `json:"debug_enclave,omitempty"`
	Status     quote.Status     `json:"status,omitempty"`
	Advisories []string         `json:"advisories,omitempty"`
	FMSPC      string           `json:"fmspc,omitempty"`
	// Machine is a digest of the quote's identifier of the platform.
	Machine string `json:"machine,omitempty"`

	expires time.Time // of the collateral
	passing bool      // it can be another one next time: the server lacks something
}

// Log is an append-only file of decisions, of which each line has the digest of the one before. Whoever knows the
// digest of a line finds out whether anything up to it was changed.
type Log struct {
	mu       sync.Mutex
	file     *os.File
	lock     *flock.Flock // so that no other server writes it
	size     int64
	number   int
	previous string
}

// ErrLog says that a log was changed.
var ErrLog = errors.New("the log was changed")

const maxLine = 256 << 10

// OpenLog opens a log, which need not be there, and checks what is in it.
func OpenLog(name string) (*Log, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	l := &Log{file: f, lock: flock.New(name)}
	if ok, lockErr := l.lock.TryLock(); lockErr != nil || !ok {
		err = errors.Join(errors.New("another server writes it"), lockErr)
	} else if l.number, l.previous, err = CheckLog(f, nil); err == nil {
		l.size, err = f.Seek(0, io.SeekEnd)
	}
	if err != nil {
		_ = l.lock.Close()
		f.Close()
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return l, nil
}

// CheckLog checks the chain of a log, and shows each line with its digest, if that is not nil. It returns how many
// there are, and the digest of the last.
func CheckLog(r io.Reader, show func(d *Decision, digest string)) (number int, previous string, err error) {
	lines := bufio.NewReaderSize(r, maxLine)
	for {
		line, err := lines.ReadSlice('\n')
		if errors.Is(err, io.EOF) && len(line) == 0 {
			return number, previous, nil
		}
		if err != nil {
			return number, previous, fmt.Errorf("%w: line %d has no end", ErrLog, number+1)
		}
		line = line[:len(line)-1]
		var d Decision
		if err := json.Unmarshal(line, &d); err != nil {
			return number, previous, fmt.Errorf("%w: line %d cannot be read: %w", ErrLog, number+1, err)
		}
		if d.Number != number+1 || d.Previous != previous {
			return number, previous, fmt.Errorf("%w: line %d does not follow the one before", ErrLog, number+1)
		}
		sum := sha256.Sum256(line)
		number, previous = d.Number, hex.EncodeToString(sum[:])
		if show != nil {
			show(&d, previous)
		}
	}
}

// Append writes a decision, so that it is on disk when Append returns.
func (l *Log) Append(d Decision) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return os.ErrClosed
	}
	d.Number, d.Previous = l.number+1, l.previous
	line, err := json.Marshal(d)
	if err != nil {
		return err
	}
	if len(line) >= maxLine {
		return fmt.Errorf("a line of the log would have %d bytes", len(line))
	}
	if _, err = l.file.Write(append(line, '\n')); err == nil {
		err = l.file.Sync()
	}
	if err != nil {
		// Such as of a full disk. A part of a line would be the end of the log.
		if cut := l.file.Truncate(l.size); cut != nil {
			l.file.Close()
			l.file = nil
		}
		return fmt.Errorf("writing the log: %w", err)
	}
	sum := sha256.Sum256(line)
	l.number, l.previous = d.Number, hex.EncodeToString(sum[:])
	l.size += int64(len(line)) + 1
	return nil
}

// Close closes the log.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	err := errors.Join(l.file.Close(), l.lock.Close())
	l.file = nil
	return err
}
