package house_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const root = "../.."

// file is one parsed Go file of the tree.
type file struct {
	path string // from the root, with slashes
	pkg  string // directory
	test bool
	ast  *ast.File
	size int // lines
}

func tree(t *testing.T) ([]file, *token.FileSet) {
	t.Helper()
	fset := token.NewFileSet()
	var files []file
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (path == filepath.Join(root, "build") || strings.HasPrefix(d.Name(), ".") && len(d.Name()) > 2 || d.Name() == "testdata") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		source, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		parsed, err := parser.ParseFile(fset, path, source, parser.ParseComments)
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		rel = filepath.ToSlash(rel)
		files = append(files, file{
			path: rel, pkg: filepath.ToSlash(filepath.Dir(rel)), test: strings.HasSuffix(rel, "_test.go"),
			ast: parsed, size: strings.Count(string(source), "\n"),
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 20 {
		t.Fatalf("only %d files found", len(files))
	}
	return files, fset
}

// TestImports holds the direction of dependencies. A package may import the
// leaves and what its row names.
func TestImports(t *testing.T) {
	files, _ := tree(t)
	for _, f := range files {
		if f.test || strings.HasPrefix(f.pkg, "cmd/") || f.pkg == "test" || f.pkg == "internal/house" {
			continue
		}
		allowed, ok := edges[f.pkg]
		if !ok {
			t.Errorf("%s: package %s has no row in the table of edges", f.path, f.pkg)
			continue
		}
		for _, i := range f.ast.Imports {
			path, _ := strconv.Unquote(i.Path.Value)
			dep, ours := strings.CutPrefix(path, "lethe/")
			if !ours || slices.Contains(leaves, dep) {
				continue
			}
			if !slices.Contains(allowed, dep) {
				t.Errorf("%s imports %s, which its row does not allow", f.path, dep)
			}
		}
	}
}

// TestPackageComments wants a tour guide for every package.
func TestPackageComments(t *testing.T) {
	files, _ := tree(t)
	has := map[string]bool{}
	for _, f := range files {
		if f.test {
			continue
		}
		has[f.pkg] = has[f.pkg] || len(f.ast.Doc.Text()) > 40
	}
	for pkg, ok := range has {
		if !ok {
			t.Errorf("package %s has no comment of its own", pkg)
		}
	}
}

// TestCalls forbids what only mains or nobody may do.
func TestCalls(t *testing.T) {
	files, fset := tree(t)
	for _, f := range files {
		if f.test || harness[f.pkg] {
			continue
		}
		main := strings.HasPrefix(f.pkg, "cmd/")
		for _, i := range f.ast.Imports {
			path, _ := strconv.Unquote(i.Path.Value)
			if (path == "log" || path == "log/slog") && f.pkg != "event" && f.pkg != "private" && !logger[f.pkg] {
				t.Errorf("%s imports %s: programs log through package event", f.path, path)
			}
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				if n.Name.Name == "init" && n.Recv == nil {
					t.Errorf("%s: an init function", fset.Position(n.Pos()))
				}
				if length := fset.Position(n.End()).Line - fset.Position(n.Pos()).Line; length > 120 {
					t.Errorf("%s: %s has %d lines", fset.Position(n.Pos()), n.Name.Name, length)
				}
			case *ast.CallExpr:
				s, ok := n.Fun.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				p, ok := s.X.(*ast.Ident)
				if !ok {
					return true
				}
				switch call := p.Name + "." + s.Sel.Name; call {
				case "os.Exit":
					if !main {
						t.Errorf("%s: %s outside cmd", fset.Position(n.Pos()), call)
					}
				case "time.Sleep", "fmt.Println", "fmt.Printf", "fmt.Print":
					t.Errorf("%s: %s", fset.Position(n.Pos()), call)
				}
			}
			return true
		})
	}
}

// TestSizes keeps the tail short.
func TestSizes(t *testing.T) {
	files, _ := tree(t)
	for _, f := range files {
		if f.size > 900 {
			t.Errorf("%s has %d lines", f.path, f.size)
		}
		if strings.HasPrefix(f.pkg, "cmd/") && !f.test && f.size > 60 {
			t.Errorf("%s has %d lines: mains are thin", f.path, f.size)
		}
	}
}

// TestReveal counts the places where personal data or a key leaves its
// wrapper. A new one is a reason to look twice, and changes this table.
func TestReveal(t *testing.T) {
	files, _ := tree(t)
	count := map[string]int{}
	for _, f := range files {
		if f.test || harness[f.pkg] {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok {
				if s, ok := call.Fun.(*ast.SelectorExpr); ok && s.Sel.Name == "Reveal" && len(call.Args) == 0 {
					count[f.pkg]++
				}
			}
			return true
		})
	}
	for pkg, n := range count {
		if reveals[pkg] != n {
			t.Errorf("package %s reveals private values in %d places, the table says %d", pkg, n, reveals[pkg])
		}
	}
	for pkg, n := range reveals {
		if count[pkg] == 0 {
			t.Errorf("package %s reveals nothing any more, the table says %d", pkg, n)
		}
	}
}

// TestNoPlaceNames keeps words out of the tree that speak of anything but the
// product.
func TestNoPlaceNames(t *testing.T) {
	files, fset := tree(t)
	for _, f := range files {
		for _, c := range f.ast.Comments {
			for _, word := range []string{"TODO", "FIXME", "XXX"} {
				if strings.Contains(c.Text(), word) {
					t.Errorf("%s: %s", fset.Position(c.Pos()), word)
				}
			}
		}
	}
}
