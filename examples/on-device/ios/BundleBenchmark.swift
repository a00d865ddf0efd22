// Times a bundle's Core ML programs on the device a test runs on, checks them on the golden values first, and attaches
// the results file. Not run by this project: it needs Xcode and an Apple device.
//
// Add this file to a unit-test target and the unpacked bundle as a folder reference named "bundle" to its resources.

import CoreML
import UIKit
import XCTest

final class BundleBenchmark: XCTestCase {
    private let warmUp = 5, runs = 50
    private let units: [(String, MLComputeUnits)] = [
        ("cpu", .cpuOnly), ("gpu", .cpuAndGPU), ("neural-engine", .cpuAndNeuralEngine), ("all", .all),
    ]

    struct Contract: Decodable {
        struct Program: Decodable { let path, sha256, tower, format, precision: String }
        struct Lineage: Decodable { let student_sha256: String }
        struct Image: Decodable { let size: Int }
        let programs: [Program]
        let lineage: Lineage
        let image: Image
    }

    struct Golden: Decodable {
        let tokens: [[Int32]]
        let text_features, image_features: [[Float]]
    }

    struct Device: Encodable { let name, system, chip, state: String }

    struct Measurement: Encodable {
        let program, sha256, tower, format, precision, backend: String
        var threads = 1
        let batch, runs: Int
        let p50_ms, p95_ms, mean_ms, first_ms, load_ms: Double
        var memory_mb = 0.0, median_is_mean = false
        let tool: String
    }

    struct Results: Encodable {
        var schema_version = 1
        let student_sha256: String
        let device: Device
        let measurements: [Measurement]
    }

    func testBenchmark() throws {
        continueAfterFailure = false  // a program that computes something else is not timed
        let bundle = Bundle(for: Self.self).url(forResource: "bundle", withExtension: nil)
        let folder = try XCTUnwrap(bundle, "no folder 'bundle' in the test's resources")
        let contract = try decode(Contract.self, folder.appending(path: "contract.json"))
        let golden = try decode(Golden.self, folder.appending(path: "golden.json"))
        var measurements: [Measurement] = []
        for program in contract.programs where program.format == "coreml" {
            let compiled = try MLModel.compileModel(at: folder.appending(path: program.path))
            for (backend, unit) in units {
                measurements.append(try measure(program, compiled, backend, unit, contract, golden))
            }
        }
        XCTAssertFalse(measurements.isEmpty, "the bundle has no Core ML programs")
        try attach(Results(student_sha256: contract.lineage.student_sha256, device: device(), measurements: measurements))
    }

    private func measure(
        _ program: Contract.Program, _ compiled: URL, _ backend: String, _ unit: MLComputeUnits,
        _ contract: Contract, _ golden: Golden
    ) throws -> Measurement {
        let configuration = MLModelConfiguration()
        configuration.computeUnits = unit
        let began = now()
        let model = try MLModel(contentsOf: compiled, configuration: configuration)
        let loaded = now() - began
        let isImage = program.tower == "image"
        let input = try isImage ? picture(model, contract.image.size) : tokens(model, golden.tokens[0])
        let first = try time { try check(model, input, isImage ? golden.image_features[0] : golden.text_features[0], program.path) }
        for _ in 0..<warmUp { _ = try model.prediction(from: input) }
        let times = try (0..<runs).map { _ in try time { _ = try model.prediction(from: input) } }.sorted()
        return Measurement(
            program: program.path, sha256: program.sha256, tower: program.tower, format: program.format,
            precision: program.precision, backend: backend, batch: try rows(model), runs: runs, p50_ms: times[runs / 2],
            p95_ms: times[runs * 95 / 100], mean_ms: times.reduce(0, +) / Double(runs), first_ms: first, load_ms: loaded,
            tool: "XCTest BundleBenchmark 1"
        )
    }

    /// A fast program that computes something else is no result.
    private func check(_ model: MLModel, _ input: MLFeatureProvider, _ wanted: [Float], _ name: String) throws {
        let output = try model.prediction(from: input)
        let array = try XCTUnwrap(output.featureValue(for: try XCTUnwrap(output.featureNames.first))?.multiArrayValue)
        let got = (0..<wanted.count).map { array[$0].floatValue }  // the first row; all rows are equal
        let dot = zip(got, wanted).reduce(Float(0)) { $0 + $1.0 * $1.1 }
        let norms = sqrt(got.reduce(0) { $0 + $1 * $1 }) * sqrt(wanted.reduce(0) { $0 + $1 * $1 })
        XCTAssertGreaterThan(dot / norms, 0.99, "\(name) does not compute the golden embedding")
    }

    /// The golden picture: (5 * column + 3 * row + 80 * channel) mod 256, as a pixel buffer or an array in 0-1.
    private func picture(_ model: MLModel, _ size: Int) throws -> MLFeatureProvider {
        let name = try XCTUnwrap(model.modelDescription.inputDescriptionsByName.keys.first)
        let value = { (row: Int, column: Int, channel: Int) in UInt8((5 * column + 3 * row + 80 * channel) % 256) }
        if model.modelDescription.inputDescriptionsByName[name]?.type == .image {
            var made: CVPixelBuffer?
            CVPixelBufferCreate(nil, size, size, kCVPixelFormatType_32BGRA, nil, &made)
            let buffer = try XCTUnwrap(made)
            CVPixelBufferLockBaseAddress(buffer, [])
            defer { CVPixelBufferUnlockBaseAddress(buffer, []) }
            let base = try XCTUnwrap(CVPixelBufferGetBaseAddress(buffer)).assumingMemoryBound(to: UInt8.self)
            let stride = CVPixelBufferGetBytesPerRow(buffer)
            for row in 0..<size {
                for column in 0..<size {
                    for channel in 0..<3 { base[row * stride + column * 4 + 2 - channel] = value(row, column, channel) }
                    base[row * stride + column * 4 + 3] = 255
                }
            }
            return try MLDictionaryFeatureProvider(dictionary: [name: MLFeatureValue(pixelBuffer: buffer)])
        }
        let count = try rows(model)
        let array = try MLMultiArray(shape: [count, 3, size, size].map { $0 as NSNumber }, dataType: .float32)
        for index in 0..<array.count {
            let (column, row, channel) = (index % size, index / size % size, index / (size * size) % 3)
            array[index] = NSNumber(value: Float(value(row, column, channel)) / 255)
        }
        return try MLDictionaryFeatureProvider(dictionary: [name: MLFeatureValue(multiArray: array)])
    }

    private func tokens(_ model: MLModel, _ row: [Int32]) throws -> MLFeatureProvider {
        let name = try XCTUnwrap(model.modelDescription.inputDescriptionsByName.keys.first)
        let array = try MLMultiArray(shape: [try rows(model), row.count].map { $0 as NSNumber }, dataType: .int32)
        for index in 0..<array.count { array[index] = NSNumber(value: row[index % row.count]) }
        return try MLDictionaryFeatureProvider(dictionary: [name: MLFeatureValue(multiArray: array)])
    }

    /// Rows that a call takes, as the contract states under `programs[].input.shape`; a picture is one.
    private func rows(_ model: MLModel) throws -> Int {
        let input = try XCTUnwrap(model.modelDescription.inputDescriptionsByName.values.first)
        return input.multiArrayConstraint?.shape.first?.intValue ?? 1
    }

    private func device() -> Device {
        var system = utsname()
        uname(&system)
        let model = withUnsafeBytes(of: &system.machine) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
        let current = UIDevice.current
        let thermal = ["nominal", "fair", "serious", "critical"][ProcessInfo.processInfo.thermalState.rawValue]
        let power = ProcessInfo.processInfo.isLowPowerModeEnabled ? "low-power mode" : "normal power"
        return Device(name: model, system: "\(current.systemName) \(current.systemVersion)", chip: "", state: "\(thermal), \(power)")
    }

    private func attach(_ results: Results) throws {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
        let attachment = XCTAttachment(data: try encoder.encode(results), uniformTypeIdentifier: "public.json")
        attachment.name = "\(results.device.name).device.json"
        attachment.lifetime = .keepAlways
        add(attachment)
    }

    private func decode<T: Decodable>(_ type: T.Type, _ url: URL) throws -> T {
        try JSONDecoder().decode(type, from: Data(contentsOf: url))
    }

    private func now() -> Double { Double(DispatchTime.now().uptimeNanoseconds) / 1e6 }

    private func time(_ work: () throws -> Void) rethrows -> Double {
        let began = now()
        try work()
        return now() - began
    }
}
