package host

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// script writes an executable that becomes the test's child. It is a script because what it is to run is this binary, which
// takes its mode from its arguments.
func script(t *testing.T, dir, mode string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return place(t, filepath.Join(dir, ExecutableName("partitioner", "probe")), fmt.Sprintf("#!/bin/sh\nexec %s child %s\n", self, mode))
}

func place(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func sum(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	h := sha256.Sum256(text)
	return hex.EncodeToString(h[:])
}

// pinned opens path for a Spec.
func pinned(path string, pins ...string) func() (*Executable, error) {
	return func() (*Executable, error) {
		exe, err := OpenExecutable(path)
		if err != nil {
			return nil, err
		}
		if err := exe.Matches(pins); err != nil {
			return nil, errors.Join(err, exe.Close())
		}
		return exe, nil
	}
}

func TestAnExecutableIsLookedAt(t *testing.T) {
	dir := t.TempDir()
	good := script(t, dir, "probe")
	link := filepath.Join(dir, "link")
	if err := os.Symlink(good, link); err != nil {
		t.Fatal(err)
	}
	linked := filepath.Join(t.TempDir(), "plugins")
	if err := os.Symlink(dir, linked); err != nil {
		t.Fatal(err)
	}
	open := filepath.Join(dir, "open")
	if err := os.Mkdir(open, 0o700); err != nil {
		t.Fatal(err)
	}
	inOpen := place(t, filepath.Join(open, "plugin"), "x")
	chmod := func(path string, mode os.FileMode) string {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	chmod(open, 0o770)
	for name, test := range map[string]struct {
		path string
		is   error
		says string
	}{
		"not there":               {filepath.Join(dir, "nothing"), ErrNoExecutable, "does not exist"},
		"no directory":            {filepath.Join(dir, "no", "nothing"), ErrNoExecutable, "does not exist"},
		"a relative path":         {"probe", ErrSpec, "absolute"},
		"a symbolic link":         {link, ErrInsecure, "symbolic link"},
		"a linked directory":      {filepath.Join(linked, filepath.Base(good)), ErrInsecure, "symbolic link"},
		"a directory":             {chmod(filepath.Join(dir, "open"), 0o770), ErrNoExecutable, "no regular file"},
		"not executable":          {chmod(place(t, filepath.Join(dir, "data"), "x"), 0o644), ErrNoExecutable, "chmod 0755"},
		"writable by the group":   {chmod(place(t, filepath.Join(dir, "group"), "x"), 0o775), ErrInsecure, "mode 0775"},
		"writable by everybody":   {chmod(place(t, filepath.Join(dir, "world"), "x"), 0o757), ErrInsecure, "mode 0757"},
		"a directory of everyone": {inOpen, ErrInsecure, "the directory has mode 0770"},
	} {
		exe, err := OpenExecutable(test.path)
		var told *ExecutableError
		if !errors.As(err, &told) || !errors.Is(err, test.is) || !strings.Contains(err.Error(), test.says) || exe != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	exe, err := OpenExecutable(good)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = exe.Close() }()
	if exe.SHA256 != sum(t, good) || exe.Interpreter != "/bin/sh" || exe.Path != good {
		t.Errorf("%+v", exe)
	}
	other := strings.Repeat("0", 64)
	if err := exe.Matches([]string{other, strings.ToUpper(exe.SHA256)}); err != nil {
		t.Error(err)
	}
	if err := exe.Matches([]string{other}); !errors.Is(err, ErrChecksum) || !strings.Contains(err.Error(), other) || !strings.Contains(err.Error(), exe.SHA256) {
		t.Error(err)
	}
	if err := exe.Matches(nil); !errors.Is(err, ErrNoChecksum) || !strings.Contains(err.Error(), "sha256: "+exe.SHA256) {
		t.Error(err)
	}
}

func TestAnExecutableOfSomebodyElseIsRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	dir := t.TempDir()
	path := script(t, dir, "probe")
	if err := os.Chown(path, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenExecutable(path); !errors.Is(err, ErrInsecure) || !strings.Contains(err.Error(), "it belongs to user 65534") {
		t.Error(err)
	}
	if err := os.Chown(path, 0, 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenExecutable(path); !errors.Is(err, ErrInsecure) || !strings.Contains(err.Error(), "the directory belongs to user 65534") {
		t.Error(err)
	}
}

func TestWhatWasHashedIsWhatRuns(t *testing.T) {
	dir := t.TempDir()
	path := script(t, dir, "probe")
	pin := sum(t, path)
	spec := Spec{Kind: "partitioner", Name: "probe", RunDir: shortDir(t), Executable: func() (*Executable, error) {
		exe, err := pinned(path, pin)()
		if err == nil {
			// Between the look and the start somebody puts another file under the name.
			if err := os.Rename(place(t, path+".new", "#!/bin/sh\nexit 7\n"), path); err != nil {
				t.Error(err)
			}
		}
		return exe, err
	}}
	r := start(t, spec, Options{})
	ask(t, r.latest(), "env")
	if st := r.Status(); st.SHA256 != pin || st.Path != path || st.Interpreter != "/bin/sh" {
		t.Errorf("status %+v", st)
	}
	// The next start meets the other file.
	if err := r.Reload(t.Context()); !errors.Is(err, ErrChecksum) {
		t.Errorf("reload: %v", err)
	}
	ask(t, r.latest(), "env") // and what runs goes on
	if st := r.Status(); st.State != StateReady || st.Restarts != 0 {
		t.Errorf("status %+v", st)
	}
}

func TestABinaryRunsFromItsDescriptor(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	// A copy of this binary whose name says what it is to be.
	path := place(t, filepath.Join(t.TempDir(), ExecutableName("partitioner", "probe")), string(text))
	spec := Spec{Kind: "partitioner", Name: "probe", RunDir: shortDir(t), Executable: pinned(path, sum(t, path)), Files: func() ([]*os.File, error) {
		f, err := os.Open(os.DevNull)
		return []*os.File{f}, err
	}}
	r := start(t, spec, Options{})
	if got := ask(t, r.latest(), "argv0"); !strings.Contains(got, path+" "+path) {
		t.Errorf("it runs as %s, want %s", got, path)
	}
	if got := ask(t, r.latest(), "fd3"); !strings.HasSuffix(strings.Trim(got, "()"), " <nil>") {
		t.Errorf("descriptor 3: %q", got)
	}
}

func TestAnExecutableThatIsRefusedDoesNotStart(t *testing.T) {
	path := script(t, t.TempDir(), "probe")
	spec := Spec{Kind: "partitioner", Name: "probe", RunDir: shortDir(t), Executable: pinned(path, strings.Repeat("0", 64))}
	var start *StartError
	if err := New(spec, Options{Logger: quiet()}).Start(t.Context()); !errors.As(err, &start) || !errors.Is(err, ErrChecksum) {
		t.Errorf("start: %v", err)
	}
}
