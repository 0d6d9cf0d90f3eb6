// Command goget checks what a user gets who requires the library: it packs the modules as
// a proxy does, requires them from an empty module, builds and runs the first program of
// README.md there, and counts the modules that come along.
//
//	cd scripts/goget && go run .
//
// With -release it also checks that the published modules are ready for a tag of that
// version; RELEASING.md has the steps.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/module"
	"golang.org/x/mod/zip"
)

const (
	root    = "github.com/rediscache/rediscache"
	version = "v0.999.0" // of the packed modules
)

// published are the nested modules that users require. All other nested modules are of
// this repository only, and keep their replace.
var published = []string{"rediscacheotel", "rediscacheprom"}

func main() {
	log.SetFlags(0)
	dir := flag.String("dir", "../..", "the root of the repository")
	release := flag.String("release", "", "a `version`, such as v1.2.3, whose tag is to be set")
	flag.Parse()
	if err := run(*dir, *release); err != nil {
		log.Fatal("goget: ", err)
	}
}

func run(dir, release string) error {
	tmp, err := os.MkdirTemp("", "goget")
	if err != nil {
		return err
	}
	defer func() { // the files of a module cache cannot be written
		_ = exec.Command("chmod", "-R", "u+w", tmp).Run()
		_ = os.RemoveAll(tmp)
	}()
	p := packer{dir: dir, proxy: filepath.Join(tmp, "proxy")}
	if release != "" {
		if err := p.ready(release); err != nil {
			return err
		}
	}
	for _, name := range append([]string{""}, published...) {
		if err := p.pack(name); err != nil {
			return fmt.Errorf("pack %q: %w", name, err)
		}
	}
	program, err := firstProgram(filepath.Join(dir, "README.md"))
	if err != nil {
		return err
	}
	app := user{dir: filepath.Join(tmp, "app"), env: append(os.Environ(), "GOWORK=off", "GOFLAGS=-modcacherw",
		"GONOSUMDB="+root, "GOMODCACHE="+filepath.Join(tmp, "cache"),
		"GOPROXY=file://"+filepath.ToSlash(p.proxy)+","+goEnv("GOPROXY"))}
	if err := app.start(program); err != nil {
		return err
	}
	out, err := app.run("run", ".")
	if err != nil {
		return err
	}
	log.Printf("the first program of README.md prints %q", bytes.TrimSpace(out))
	if err := app.count(dir); err != nil {
		return err
	}
	for _, name := range published {
		if _, err := app.run("get", root+"/"+name+"@"+version); err != nil {
			return err
		}
		if _, err := app.run("build", root+"/"+name); err != nil {
			return err
		}
		log.Printf("%s builds as a dependency", name)
	}
	return nil
}

// packer packs modules into a directory that the go command takes for a proxy.
type packer struct{ dir, proxy string }

// pack packs the module in a directory of the repository as it will be released: without
// a replace, and with a requirement of the root at the same version.
func (p packer) pack(name string) error {
	file, err := p.mod(name)
	if err != nil {
		return err
	}
	path := file.Module.Mod.Path
	if name != "" {
		if err := errors.Join(file.DropReplace(root, ""), file.AddRequire(root, version)); err != nil {
			return err
		}
		file.Cleanup()
	}
	mod, err := file.Format()
	if err != nil {
		return err
	}
	at := filepath.Join(p.proxy, filepath.FromSlash(path), "@v")
	if err := os.MkdirAll(at, 0o777); err != nil {
		return err
	}
	for suffix, text := range map[string]string{
		version + ".mod": string(mod), "list": version + "\n", version + ".info": `{"Version":"` + version + `"}`,
	} {
		if err := os.WriteFile(filepath.Join(at, suffix), []byte(text), 0o666); err != nil {
			return err
		}
	}
	copied := filepath.Join(p.proxy, "copy", name)
	if err := os.CopyFS(copied, os.DirFS(filepath.Join(p.dir, name))); err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(copied) }()
	if err := os.WriteFile(filepath.Join(copied, "go.mod"), mod, 0o666); err != nil {
		return err
	}
	packed, err := os.Create(filepath.Join(at, version+".zip"))
	if err != nil {
		return err
	}
	err = zip.CreateFromDir(packed, module.Version{Path: path, Version: version}, copied) // without nested modules
	return errors.Join(err, packed.Close())
}

func (p packer) mod(name string) (*modfile.File, error) {
	path := filepath.Join(p.dir, name, "go.mod")
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return modfile.Parse(path, text, nil)
}

// ready reports what keeps the published modules from a tag.
func (p packer) ready(release string) error {
	var all error
	for _, name := range published {
		file, err := p.mod(name)
		if err != nil {
			return err
		}
		for _, r := range file.Replace {
			all = errors.Join(all, fmt.Errorf("%s/go.mod still has a replace of %s: delete it", name, r.Old.Path))
		}
		for _, r := range file.Require {
			if r.Mod.Path == root && r.Mod.Version != release {
				all = errors.Join(all, fmt.Errorf("%s/go.mod requires %s %s: write %s", name, root, r.Mod.Version, release))
			}
		}
	}
	return all
}

// firstProgram returns the first Go program of a Markdown file.
func firstProgram(path string) ([]byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	_, rest, found := bytes.Cut(text, []byte("```go\n"))
	program, _, closed := bytes.Cut(rest, []byte("```"))
	if !found || !closed || !bytes.Contains(program, []byte("package main")) {
		return nil, fmt.Errorf("%s has no program", path)
	}
	return program, nil
}

// user is a module that requires the library.
type user struct {
	dir string
	env []string
}

func (u user) start(program []byte) error {
	if err := os.MkdirAll(u.dir, 0o777); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(u.dir, "main.go"), program, 0o666); err != nil {
		return err
	}
	if _, err := u.run("mod", "init", "example.com/app"); err != nil {
		return err
	}
	_, err := u.run("get", root+"@"+version)
	return err
}

// run runs the go command.
func (u user) run(args ...string) ([]byte, error) {
	cmd := exec.Command("go", args...)
	cmd.Dir, cmd.Env = u.dir, u.env
	out, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("%s: %w\n%s", cmd, err, out)
	}
	return out, nil
}

// count compares the modules that come with the library with those that come with its
// direct requirements: there must be no other.
func (u user) count(dir string) error {
	file, err := packer{dir: dir}.mod("")
	if err != nil {
		return err
	}
	got, err := u.run("list", "-m", "all")
	if err != nil {
		return err
	}
	bare := user{dir: u.dir + "-bare", env: u.env}
	if err := os.MkdirAll(bare.dir, 0o777); err != nil {
		return err
	}
	if _, err := bare.run("mod", "init", "example.com/app"); err != nil {
		return err
	}
	var direct []string
	for _, r := range file.Require {
		if !r.Indirect {
			direct = append(direct, r.Mod.Path)
			if _, err := bare.run("get", r.Mod.String()); err != nil {
				return err
			}
		}
	}
	want, err := bare.run("list", "-m", "all")
	if err != nil {
		return err
	}
	known := make(map[string]bool)
	for line := range strings.Lines(string(want)) {
		known[strings.Fields(line)[0]] = true
	}
	n := 0
	for line := range strings.Lines(string(got)) {
		path := strings.Fields(line)[0]
		if n++; !known[path] && path != root {
			return fmt.Errorf("%s comes with the library, and with none of %s", path, strings.Join(direct, ", "))
		}
	}
	log.Printf("%d modules in the graph of the program, itself and the library included; none that does not come with %s",
		n, strings.Join(direct, ", "))
	linked, err := u.run("list", "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}", ".")
	if err != nil {
		return err
	}
	distinct := make(map[string]bool)
	for line := range strings.Lines(string(linked)) {
		if path := strings.TrimSpace(line); path != "" {
			distinct[path] = true
		}
	}
	log.Printf("%d modules in the program itself, which are linked", len(distinct))
	return nil
}

func goEnv(name string) string {
	out, err := exec.Command("go", "env", name).Output()
	if err != nil {
		log.Fatal("goget: go env: ", err)
	}
	return strings.TrimSpace(string(out))
}
