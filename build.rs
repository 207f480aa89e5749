//! Compiles the CUDA kernels, where they are asked for: with the feature "cuda" by nvcc, one fatbin
//! a file of `cuda/`, and bindgen's reading of their parameters; with "cuda-host" once more by g++,
//! for the harness that runs them on the CPU. Without either it does nothing. Never needs a GPU.
//!
//! Variables: NVCC, CUDA_HOME, LIBCLANG_PATH (where to look first), PUNA_CUDA_ARCHS (a list such as
//! `80,90a` in place of all, for quicker builds), PUNA_HOST_SANITIZE (`address` or `race`).

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "cuda")]
    if let Err(why) = cuda::build() {
        // One line each, as cargo reads them.
        for line in why.lines() {
            println!("cargo::error={line}");
        }
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use std::collections::hash_map::DefaultHasher;
    use std::env;
    use std::fs;
    use std::hash::{Hash, Hasher};
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    type Result<T> = std::result::Result<T, String>;

    /// What kernels are compiled for. Kernels for one kind of GPU have the kind in their file's name.
    const ARCHS: &[&str] = &["80", "86", "89", "90a", "100"];
    /// For GPUs that come after these the driver compiles this one's intermediate code.
    const PTX: &str = "compute_80";
    /// Kernels of these files run on compute capability 9.0 alone (wgmma, bulk copies).
    const SM90A_ONLY: &str = "_sm90a";

    const GET_TOOLS: &str = "run `cuda/toolchain.sh`, which fetches it into .tools/cuda";

    pub fn build() -> Result<()> {
        println!("cargo::rerun-if-changed=cuda");
        for name in ["NVCC", "CUDA_HOME", "PATH", "LIBCLANG_PATH", "PUNA_CUDA_ARCHS"] {
            println!("cargo::rerun-if-env-changed={name}");
        }
        println!("cargo::rerun-if-env-changed=PUNA_HOST_SANITIZE");
        let out = PathBuf::from(variable("OUT_DIR")?);
        let root = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
        let sources = sources(&root.join("cuda"))?;
        let tools = Tools::find(&root);

        bindings(&root, &out, &tools)?;
        match &tools.nvcc {
            Some(nvcc) => fatbins(nvcc, &root, &out, &sources)?,
            // Then kernels run on the harness only, and opening a GPU says why not there.
            None if cfg!(feature = "cuda-host") => {
                write_kernels_rs(&out, &out, &[], "no nvcc was found")?
            }
            None => {
                return Err(format!(
                    "feature \"cuda\" needs nvcc (CUDA 13.0): none in $NVCC, $CUDA_HOME/bin, $PATH, \
                     .tools/cuda or /usr/local/cuda; {GET_TOOLS}, or build without the feature"
                ));
            }
        }
        #[cfg(feature = "cuda-host")]
        host(&root, &out, &sources, &tools)?;
        Ok(())
    }

    fn variable(name: &str) -> Result<String> {
        env::var(name).map_err(|e| format!("${name}: {e}"))
    }

    fn at<T>(path: &Path, done: std::io::Result<T>) -> Result<T> {
        done.map_err(|e| format!("{}: {e}", path.display()))
    }

    /// The `.cu` files, sorted.
    fn sources(folder: &Path) -> Result<Vec<PathBuf>> {
        let mut found = vec![];
        for entry in at(folder, fs::read_dir(folder))? {
            let path = at(folder, entry)?.path();
            if path.extension().is_some_and(|e| e == "cu") {
                found.push(path);
            }
        }
        found.sort();
        Ok(found)
    }

    fn stem(path: &Path) -> &str {
        path.file_stem().and_then(|s| s.to_str()).unwrap_or_default()
    }

    struct Tools {
        nvcc: Option<PathBuf>,
        /// CUDA's headers.
        #[cfg_attr(not(feature = "cuda-host"), expect(dead_code))]
        include: Option<PathBuf>,
        /// Folder of libclang, where it is not for the system to find.
        libclang: Option<PathBuf>,
    }

    impl Tools {
        fn find(root: &Path) -> Self {
            let path = |name: &str| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
            let file = |path: PathBuf| path.is_file().then_some(path);
            let fetched = root.join(".tools/cuda");
            let homes = [
                path("CUDA_HOME"),
                Some(fetched.join("nvidia/cu13")),
                Some(PathBuf::from("/usr/local/cuda")),
            ];
            let in_home = |of: usize| {
                let home: Option<&PathBuf> = homes[of].as_ref();
                home.and_then(|home| file(home.join("bin/nvcc")))
            };
            let in_path = || {
                let folders = env::var_os("PATH").unwrap_or_default();
                env::split_paths(&folders).find_map(|folder| file(folder.join("nvcc")))
            };
            let nvcc = path("NVCC")
                .and_then(file)
                .or_else(|| in_home(0))
                .or_else(in_path)
                .or_else(|| in_home(1))
                .or_else(|| in_home(2));
            // The home of the compiler, should none be named.
            let own = nvcc.as_ref().and_then(|nvcc| nvcc.canonicalize().ok());
            let own = own.and_then(|nvcc| Some(nvcc.parent()?.parent()?.to_path_buf()));
            let include = own
                .iter()
                .chain(homes.iter().flatten())
                .map(|home| home.join("include"))
                .find(|folder| folder.join("cuda_bf16.h").is_file());
            // A folder of toolchain.sh has libclang beside nvidia/cu13.
            let near =
                include.as_ref().and_then(|i| Some(i.parent()?.parent()?.parent()?.to_owned()));
            let libclang = near
                .into_iter()
                .chain([fetched])
                .map(|folder| folder.join("clang/native"))
                .find(|folder| folder.join("libclang.so").is_file());
            Tools { nvcc, include, libclang }
        }
    }

    /// Runs a command; its whole output, or an error with it.
    fn run(command: &mut Command, what: &str) -> Result<String> {
        let program = command.get_program().to_string_lossy().into_owned();
        let output = command.output().map_err(|e| format!("{program}: {e}"))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        if output.status.success() { Ok(text) } else { Err(format!("{what}:\n{text}")) }
    }

    // ---- parameters ----

    /// `params.rs`: structs and constants of `cuda/include/params.h`.
    fn bindings(root: &Path, out: &Path, tools: &Tools) -> Result<()> {
        if let (Some(folder), None) = (&tools.libclang, env::var_os("LIBCLANG_PATH")) {
            // SAFETY: `main` has started no thread yet, so nobody reads the environment meanwhile.
            unsafe { env::set_var("LIBCLANG_PATH", folder) };
        }
        let include = root.join("cuda/include");
        let header = include.join("params.h");
        let builder = bindgen::Builder::default()
            .header(header.to_string_lossy())
            .allowlist_file(format!("{}/.*", include.to_string_lossy()))
            .use_core()
            .layout_tests(true)
            .derive_default(true)
            .generate_comments(false);
        // Where there is no libclang it panics. The message of any other panic is worth as much.
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        // The builder is not looked at after a panic.
        let generate = std::panic::AssertUnwindSafe(|| builder.generate());
        let generated = std::panic::catch_unwind(generate);
        std::panic::set_hook(hook);
        let bindings = match generated {
            Ok(generated) => generated.map_err(|e| format!("bindgen: {e}"))?,
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map_or("it gave no reason", |s| s);
                return Err(format!(
                    "feature \"cuda\" needs libclang to read cuda/include/params.h; {GET_TOOLS}, \
                     or set LIBCLANG_PATH: {text}"
                ));
            }
        };
        let file = out.join("params.rs");
        at(&file, bindings.write_to_file(&file))
    }

    // ---- for GPUs ----

    /// Compiles every source that changed and writes `kernels.rs`, which embeds them.
    fn fatbins(nvcc: &Path, root: &Path, out: &Path, sources: &[PathBuf]) -> Result<()> {
        let archs = archs(nvcc)?;
        if archs.is_empty() {
            return write_kernels_rs(out, out, &[], "PUNA_CUDA_ARCHS was none");
        }
        // Beside all builds of this profile: those of other features need the same kernels, which take
        // minutes. cargo lets one build of a profile run at a time.
        let kept = out.ancestors().nth(3).unwrap_or(out).join("puna-kernels");
        at(&kept, fs::create_dir_all(&kept))?;
        let version = run(Command::new(nvcc).arg("--version"), "nvcc --version")?;
        each(sources, |source| fatbin(nvcc, &version, root, &kept, source, &archs))?;
        let stems: Vec<_> = sources.iter().map(|source| stem(source)).collect();
        // What the assembler said of every kernel's registers and memory; cuda/check.sh reads it.
        let mut report = String::new();
        for stem in &stems {
            let file = kept.join(format!("{stem}.ptxas.txt"));
            report += &at(&file, fs::read_to_string(&file))?;
        }
        let file = kept.join("ptxas.txt");
        at(&file, fs::write(&file, report))?;
        write_kernels_rs(out, &kept, &stems, "")
    }

    /// The architectures to compile for: as far as this nvcc knows them, or as told.
    fn archs(nvcc: &Path) -> Result<Vec<String>> {
        if let Ok(list) = env::var("PUNA_CUDA_ARCHS") {
            let wanted = list.split(',').map(str::trim).filter(|a| !a.is_empty() && *a != "none");
            return Ok(wanted.map(String::from).collect());
        }
        let known = run(Command::new(nvcc).arg("--list-gpu-code"), "nvcc --list-gpu-code")?;
        let known: Vec<_> = known.split_whitespace().collect();
        let wanted = ARCHS.iter().filter(|arch| {
            // The list has plain numbers only; a variant ("90a") comes with its number.
            let plain = arch.trim_end_matches(char::is_alphabetic);
            known.contains(&format!("sm_{plain}").as_str())
        });
        Ok(wanted.map(|arch| (*arch).to_owned()).collect())
    }

    /// One source into `<stem>.fatbin` and the assembler's report, unless they are up to date.
    fn fatbin(
        nvcc: &Path,
        version: &str,
        root: &Path,
        out: &Path,
        source: &Path,
        archs: &[String],
    ) -> Result<()> {
        let stem = stem(source);
        let result = out.join(format!("{stem}.fatbin"));
        // Compressed, lines for profilers and sanitizers cost little.
        let mut args: Vec<String> =
            ["-O3", "-std=c++17", "-lineinfo", "-Xptxas", "-v", "--fatbin", "--compress-mode=size"]
                .map(String::from)
                .into();
        if stem.ends_with(SM90A_ONLY) {
            args.push("-gencode=arch=compute_90a,code=sm_90a".into());
        } else {
            args.extend(archs.iter().map(|a| format!("-gencode=arch=compute_{a},code=sm_{a}")));
            args.push(format!("-gencode=arch={PTX},code={PTX}"));
        }
        let made = Made::of(&result, &(version, &args));
        let report = out.join(format!("{stem}.ptxas.txt"));
        if report.is_file() && made.is_fresh() {
            return Ok(());
        }
        let mut command = Command::new(nvcc);
        // The slowest file is compiled for one architecture beside the other, not after it.
        command.args(["--threads", "2"]);
        command.args(&args).arg("-I").arg(root.join("cuda")).args(["-MMD", "-MF"]);
        command.arg(&made.inputs).arg("-o").arg(&result).arg(source);
        let text = run(&mut command, &format!("nvcc refuses {}", source.display()))?;
        at(&report, fs::write(&report, text))?;
        made.keep()
    }

    // ---- what need not be made again ----

    /// A compiler's result, and what it was made of: command, and contents of the files that the
    /// compiler says it read. Not their times, which git changes.
    struct Made {
        result: PathBuf,
        /// The compiler's list of the files.
        inputs: PathBuf,
        key: PathBuf,
        command: DefaultHasher,
    }

    impl Made {
        fn of(result: &Path, command: &impl Hash) -> Self {
            let mut hasher = DefaultHasher::new();
            command.hash(&mut hasher);
            let beside = |extension| result.with_extension(extension);
            let (inputs, key) = (beside("d"), beside("key"));
            Made { result: result.to_owned(), inputs, key, command: hasher }
        }

        /// `None` where a file is not there any more.
        fn hash(&self) -> Option<String> {
            let list = fs::read_to_string(&self.inputs).ok()?;
            let (_, list) = list.split_once(": ")?;
            let mut hasher = self.command.clone();
            // A rule of make: lines end in a backslash, and so does the first half of a name with a
            // blank in it.
            let list = list.replace("\\\n", " ").replace("\\ ", "\0");
            for name in list.split_ascii_whitespace() {
                fs::read(name.replace('\0', " ")).ok()?.hash(&mut hasher);
            }
            Some(format!("{:016x}", hasher.finish()))
        }

        fn is_fresh(&self) -> bool {
            let old = fs::read_to_string(&self.key).ok();
            self.result.is_file() && old.is_some() && old == self.hash()
        }

        fn keep(&self) -> Result<()> {
            let why = || format!("{}: no list of files", self.inputs.display());
            at(&self.key, fs::write(&self.key, self.hash().ok_or_else(why)?))
        }
    }

    /// Calls `make` for every source, on as many threads as cargo allows.
    fn each(sources: &[PathBuf], make: impl Fn(&PathBuf) -> Result<()> + Sync) -> Result<()> {
        let next = AtomicUsize::new(0);
        let failures = Mutex::new(vec![]);
        let jobs = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1usize);
        thread::scope(|scope| {
            for _ in 0..jobs.clamp(1, sources.len().max(1)) {
                scope.spawn(|| {
                    while let Some(source) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if let Err(why) = make(source) {
                            failures.lock().unwrap_or_else(|e| e.into_inner()).push(why);
                        }
                    }
                });
            }
        });
        let mut failures = failures.into_inner().unwrap_or_else(|e| e.into_inner());
        failures.sort();
        if failures.is_empty() { Ok(()) } else { Err(failures.join("\n")) }
    }

    fn write_kernels_rs(out: &Path, kept: &Path, stems: &[&str], why_none: &str) -> Result<()> {
        let rows: String = stems
            .iter()
            .map(|stem| {
                let file = kept.join(format!("{stem}.fatbin"));
                format!("    ({stem:?}, include_bytes!({:?})),\n", file.to_string_lossy())
            })
            .collect();
        let text = format!(
            "/// Name and image of every kernel file.\n\
             pub static FATBINS: &[(&str, &[u8])] = &[\n{rows}];\n\
             /// Why there are none, where there are none.\n\
             pub const WHY_NONE: &str = {why_none:?};\n"
        );
        let file = out.join("kernels.rs");
        at(&file, fs::write(&file, text))
    }

    // ---- for the harness ----

    /// One library of the harness (cuda/host) and of every kernel, compiled by g++.
    #[cfg(feature = "cuda-host")]
    fn host(root: &Path, out: &Path, sources: &[PathBuf], tools: &Tools) -> Result<()> {
        if variable("CARGO_CFG_TARGET_ARCH")? != "x86_64"
            || variable("CARGO_CFG_TARGET_OS")? != "linux"
        {
            return Err("feature \"cuda-host\" is for Linux on x86-64".into());
        }
        let Some(include) = &tools.include else {
            return Err(format!(
                "feature \"cuda-host\" needs CUDA's headers; {GET_TOOLS} (--headers is enough), or \
                 set CUDA_HOME"
            ));
        };
        let sanitize = env::var("PUNA_HOST_SANITIZE").unwrap_or_default();
        let cuda = root.join("cuda");
        let mut common = cc::Build::new();
        common.cpp(true).std("c++17").opt_level(2).debug(false).warnings(false);
        // Lines for AddressSanitizer's reports. Contracting a * b + c is the kernel's decision here.
        common.flag("-g1").flag("-w").flag("-ffp-contract=off").flag("-fno-data-sections");
        // Errors name files as the repository has them.
        common.flag(format!("-ffile-prefix-map={}/=", root.display()));
        common.include(&cuda).flag("-isystem").flag(include);
        common.flag("-isystem").flag(include.join("cccl"));
        if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
            // Else every fmaf is a call.
            common.flag("-march=x86-64-v3");
        }
        if sanitize == "address" {
            common.flag("-fsanitize=address").flag("-fsanitize-recover=address");
            link_asan()?;
        }
        let (mut runtime, mut kernels) = (common.clone(), common);
        match sanitize.as_str() {
            "" | "address" => {}
            "race" => {
                runtime.define("PUNA_HOST_RACE", None);
                kernels.flag("-fsanitize=thread");
            }
            other => {
                return Err(format!("PUNA_HOST_SANITIZE={other}: known are address and race"));
            }
        }
        kernels.flag(
            "-fsanitize=alignment,bounds,shift,integer-divide-by-zero,signed-integer-overflow",
        );

        let folder = cuda.join("host");
        for entry in at(&folder, fs::read_dir(&folder))? {
            let path = at(&folder, entry)?.path();
            if path.extension().is_some_and(|e| e == "cpp") {
                runtime.file(path);
            }
        }
        let planted = ["planted.cu", "planted_sm90a.cu"].map(|name| folder.join(name));
        let wrapped = out.join("host");
        at(&wrapped, fs::create_dir_all(&wrapped))?;
        let sources: Vec<PathBuf> = sources.iter().cloned().chain(planted).collect();
        let compiler = kernels.get_compiler();
        each(&sources, |source| {
            // Why a namespace: cuda/host/host.h, at __shared__.
            let file = wrapped.join(format!("{}.cpp", stem(source)));
            let text = format!(
                "#define PUNA_SM90A {}\n#include \"host/host.h\"\n\
                 namespace {{\n#include \"{}\"\n}}\n",
                stem(source).ends_with(SM90A_ONLY),
                source.display()
            );
            let object = file.with_extension("o");
            let mut command = compiler.to_command();
            let made = Made::of(&object, &format!("{command:?}"));
            if made.is_fresh() {
                return Ok(());
            }
            at(&file, fs::write(&file, text))?;
            command.args(["-MMD", "-MF"]).arg(&made.inputs).arg("-c").arg(&file);
            command.arg("-o").arg(&object);
            run(&mut command, &format!("g++ refuses {}", source.display()))?;
            let rename = ".bss=puna_shared,alloc,load,data,contents";
            let mut command = Command::new("objcopy");
            command.arg("--rename-section").arg(rename).arg(&object);
            run(&mut command, "objcopy (of binutils, which g++ needs too)")?;
            made.keep()
        })?;
        for source in &sources {
            runtime.object(wrapped.join(format!("{}.o", stem(source))));
        }
        // Kernels are reached only through what registers them, which no linker would look for.
        runtime.link_lib_modifier("+whole-archive");
        runtime.try_compile("puna_host").map_err(|e| e.to_string())
    }

    /// The library of AddressSanitizer, which has to be gcc's own.
    #[cfg(feature = "cuda-host")]
    fn link_asan() -> Result<()> {
        let mut command = Command::new("g++");
        let file = run(command.arg("-print-file-name=libasan.so"), "g++ -print-file-name")?;
        let folder = Path::new(file.trim()).parent().filter(|f| !f.as_os_str().is_empty());
        let folder = folder.ok_or("g++ has no libasan.so: install libasan, or g++ with it")?;
        println!("cargo::rustc-link-search=native={}", folder.display());
        println!("cargo::rustc-link-lib=dylib=asan");
        Ok(())
    }
}
