package store

import (
	"crypto/hmac"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"keylease/internal/wholefile"
)

// keycheck is the one file that is read before Badger is opened. Nobody needs a key to read it; a root key fits a
// store if it yields Check. Who changes the file makes the store refuse its own key, and gains nothing.
type keycheck struct {
	Format     int    `json:"format"`
	StoreID    string `json:"store_id"`   // 16 random bytes in hex
	Salt       string `json:"salt"`       // 32 random bytes in hex, of every key derivation
	KeySource  string `json:"key_source"` // where the root key comes from
	Generation uint32 `json:"generation"` // of the root key: from 1, one more at each rotation
	Master     string `json:"master"`     // 32 random bytes, sealed under the root key, in hex
	Check      string `json:"check"`      // MAC over all of the above, under a key derived from the root key
}

const (
	keycheckName   = "keycheck"
	keycheckFormat = 3 // of all the folder; see layout in store.go
	keycheckMax    = 4096
)

func storeDir(dir string) string { return filepath.Join(dir, "store") }

// KeySource tells where the root key of the store in dir comes from, as recorded when it was made. It needs no key
// and changes nothing. ErrNoStore: there is none.
func KeySource(dir string) (string, error) {
	kc, err := readKeycheck(dir)
	return kc.KeySource, err
}

// openKeycheck returns the keys of the store in o.Dir, having made sure that the root key is the right one, or of a
// new store. Before it returns nothing that exists was changed.
func openKeycheck(o Options) (*keyring, error) {
	if err := trustFolder(o.Dir, o.Create); err != nil {
		return nil, err
	}
	kc, err := readKeycheck(o.Dir)
	if errors.Is(err, ErrNoStore) && o.Create {
		kc, err = createKeycheck(o)
	}
	if err != nil {
		return nil, err
	}
	keys, err := kc.keys(o.RootKey)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", o.Dir, err)
	}
	if err := trustFolder(storeDir(o.Dir), false); err != nil && !errors.Is(err, ErrNoStore) {
		return nil, err
	}
	return keys, nil
}

func readKeycheck(dir string) (keycheck, error) {
	var kc keycheck
	path := filepath.Join(dir, keycheckName)
	data, err := readSmall(path, keycheckMax)
	if errors.Is(err, fs.ErrNotExist) {
		if left, _ := os.ReadDir(storeDir(dir)); len(left) > 0 {
			return kc, fmt.Errorf("%w: %s is missing though %s is there: %w", ErrIntegrity, path, storeDir(dir), ErrKeycheck)
		}
		return kc, fmt.Errorf("%w: %s", ErrNoStore, dir)
	}
	if err != nil {
		if errors.Is(err, ErrIntegrity) {
			err = errors.Join(err, ErrKeycheck)
		}
		return kc, fmt.Errorf("reading the key check: %w", err)
	}
	err = json.Unmarshal(data, &kc)
	if err == nil && kc.Format != keycheckFormat {
		return kc, fmt.Errorf("%w: %s says that the folder is of format %d, and this version of keylease reads %d: another version made it, or it is damaged: %w",
			ErrIntegrity, path, kc.Format, keycheckFormat, ErrKeycheck)
	}
	if err != nil || !kc.sound() {
		return kc, fmt.Errorf("%w: %s is damaged: %w", ErrIntegrity, path, ErrKeycheck)
	}
	return kc, nil
}

func (kc keycheck) sound() bool {
	return isHex(kc.StoreID, 16) && isHex(kc.Salt, 32) && isHex(kc.Master, sealedExtra+32) && kc.Generation > 0
}

func isHex(s string, n int) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == n
}

// id is the store's, of a keycheck that is sound.
func (kc keycheck) id() []byte {
	id, _ := hex.DecodeString(kc.StoreID)
	return id
}

func createKeycheck(o Options) (keycheck, error) {
	id, salt, master := make([]byte, 16), make([]byte, 32), make([]byte, 32)
	rand.Read(id) // does not fail: crypto/rand ends the program instead
	rand.Read(salt)
	rand.Read(master)
	kc := keycheck{Format: keycheckFormat, StoreID: hex.EncodeToString(id), Salt: hex.EncodeToString(salt), KeySource: o.KeySource}
	root, err := newRootKeys(o.RootKey, salt, 1)
	if err != nil {
		return kc, err
	}
	kc.seal(root, master)
	data, err := kc.encode()
	if err != nil {
		return kc, err
	}
	err = writeOnce(filepath.Join(o.Dir, keycheckName), data)
	if errors.Is(err, fs.ErrExist) { // another process was faster: its store it is
		return readKeycheck(o.Dir)
	}
	return kc, err
}

// seal puts master under root and says that this is so.
func (kc *keycheck) seal(root *rootKeys, master []byte) {
	kc.Generation = root.generation
	kc.Master = hex.EncodeToString(seal(root.wrap, master, kc.masterAAD()))
	sum := kc.mac(root)
	kc.Check = hex.EncodeToString(sum[:])
}

func (kc keycheck) encode() ([]byte, error) {
	data, err := json.MarshalIndent(kc, "", "  ")
	return append(data, '\n'), err
}

// keys returns the keys of the store, or ErrWrongKey. kc is sound.
func (kc keycheck) keys(rootKey []byte) (*keyring, error) {
	id, err1 := hex.DecodeString(kc.StoreID)
	salt, err2 := hex.DecodeString(kc.Salt)
	sealed, err3 := hex.DecodeString(kc.Master)
	if errors.Join(err1, err2, err3) != nil {
		return nil, fmt.Errorf("%w: the key check is not hex: %w", ErrIntegrity, ErrKeycheck)
	}
	root, err := newRootKeys(rootKey, salt, kc.Generation)
	if err != nil {
		return nil, err
	}
	check, err := hex.DecodeString(kc.Check)
	if want := kc.mac(root); err != nil || !hmac.Equal(check, want[:]) {
		return nil, ErrWrongKey
	}
	master, err := open(root.wrap, sealed, kc.masterAAD())
	if err != nil {
		return nil, fmt.Errorf("%w: the master key in %s: %w: %w", ErrIntegrity, keycheckName, err, ErrKeycheck)
	}
	keys, err := newKeyring(master, id, salt)
	if err != nil {
		return nil, err
	}
	keys.keks.Store(&keks{now: root})
	return keys, nil
}

func (kc keycheck) mac(root *rootKeys) [32]byte {
	return keyed(root.check, tuple(nil).num(uint64(kc.Format)).text(kc.StoreID).text(kc.Salt).text(kc.KeySource).
		num(uint64(kc.Generation)).text(kc.Master))
}

func (kc keycheck) masterAAD() []byte {
	return tuple(nil).text("master").text(kc.StoreID).num(uint64(kc.Generation))
}

// writeOnce makes path with data, whole and on disk, or leaves it alone if it exists (fs.ErrExist).
func writeOnce(path string, data []byte) error {
	return wholefile.New(path, func(f *os.File) error { _, err := f.Write(data); return err })
}

// readSmall reads a file that is ours and at most max bytes long.
func readSmall(path string, max int) ([]byte, error) {
	f, err := openPlain(path, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, max+1)
	n := 0
	for n < len(b) {
		m, err := f.Read(b[n:])
		n += m
		if err != nil {
			break
		}
	}
	if n > max {
		return nil, fmt.Errorf("%w: %s is larger than it can be", ErrIntegrity, path)
	}
	return b[:n], nil
}
